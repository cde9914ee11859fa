"""A valid call of bottleneck: objectives as in losses; `model(similarities)` on similarities to concepts;
`part(logits)` -> (z_hat, info) of parts that have a codebook."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from contract.rooms import losses
from contract.samples import CLASSES, FEATURES, TOKENS, Sample
from logitkit import catalog


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "codebook" in inspect.signature(card.build).parameters:
        return codebook(card, batch, normal, dtype, device)
    if "concepts" not in card.tasks:
        return losses.make(card, batch, normal, g, build, dtype, device)
    similarities = normal(batch, FEATURES)
    bad = {
        "similarities of another rank": lambda p: p(similarities[0]),
        "similarities to other concepts": lambda p: p(similarities[:, :-1]),
        "integer similarities": lambda p: p(similarities.long()),
        "NaN similarities": lambda p: p(similarities * float("nan")),
        "an empty batch": lambda p: p(similarities[:0]),
    }
    return Sample(build, (similarities,), lambda part, x: part(x)[1], bad)


def codebook(card, batch, normal, dtype, device) -> Sample:
    """A valid call of `part(logits)`, logits over the codes of a codebook."""
    logits, codes = normal(batch, TOKENS, CLASSES), torch.arange(CLASSES * FEATURES, dtype=torch.float64)

    def build() -> Any:
        made = catalog.create(card.room, card.name, codebook=codes.sin().view(CLASSES, FEATURES))
        return made.to(device, dtype)

    bad = {
        "logits of another rank": lambda p: p(logits[0, 0]),
        "logits of another codebook": lambda p: p(logits[..., :-1]),
        "integer logits": lambda p: p(logits.long()),
        "NaN logits": lambda p: p(logits * float("nan")),
        "an empty batch": lambda p: p(logits[:0]),
    }
    return Sample(build, (logits,), lambda part, logits: part(logits)[0], bad)
