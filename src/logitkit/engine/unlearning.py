"""Making a trained network forget: the loop around the objectives of `adapt`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Generator, Tensor

from logitkit.adapt import Unlearner
from logitkit.data.base import IGNORE, following
from logitkit.engine.network import Network
from logitkit.engine.train import Diverged


def unlearned(
    network: Network,
    part: Unlearner,
    needs: tuple[str, ...],
    x: Tensor,
    y: Tensor,
    instead: Tensor,
    generator: Generator,
) -> Network:
    """A copy of `network` that has forgotten the rows of x, y (rows, tokens) that have an answer to give
    `instead`.

    `part` gets the scores and labels of all of these in every step, and what it `needs`: the same with the
    answer to give instead, of as many rows to keep drawn anew, and the scores before. Nothing is dropped
    out.
    """
    marked = (instead != IGNORE).any(1)
    asked, answer, others = x[marked], y[marked], following(x[marked], instead[marked])
    kept, kept_answer = x[~marked], y[~marked]
    learner = copy.deepcopy(network).eval()

    def scores(model: Network, tokens: Tensor) -> Tensor:
        return model(tokens).view(*tokens.shape, -1)

    seen: dict[str, Any] = {"template_labels": instead[marked]}
    with torch.no_grad():
        if "forget_reference" in needs:
            seen["forget_reference"] = scores(network, asked)
        if "template_reference" in needs:
            seen["template_reference"] = scores(network, others)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=part.lr, fused=True)
    for step in range(1, part.steps + 1):
        try:
            found = scores(learner, asked)
            if part.stop is not None and _answered(found, answer) <= part.stop:
                break
            if "template_logits" in needs:
                seen["template_logits"] = scores(learner, others)
            if "retain_logits" in needs:
                rows = torch.randint(len(kept), (len(asked),), generator=generator)
                seen |= {"retain_logits": scores(learner, kept[rows]), "retain_labels": kept_answer[rows]}
            loss = part(found, answer, **{key: seen[key] for key in needs})
        except ValueError as error:
            if "NaN" in str(error):
                raise Diverged(f"the network's outputs are NaN at step {step} of unlearning") from error
            raise
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not all(bool(p.isfinite().all()) for p in learner.parameters()):
            raise Diverged(f"the network's weights are not finite after step {step} of unlearning")
    return learner


def _answered(scores: Tensor, y: Tensor) -> float:
    """Share of the rows all of whose labels are the most probable tokens."""
    return ((scores.argmax(-1) == y) | (y == IGNORE)).all(1).double().mean().item()
