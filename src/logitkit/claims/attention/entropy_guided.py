"""050: without LayerNorm and activations, heads overload; a penalty on their entropy holds them back.

Set beforehand: the language model on bytes of Python source (`CODE_LM`) without LayerNorm and with linear
feed-forward networks, lambda 1e-5, margin 0.2, causal highest entropies; seeds 0-2; both thresholds.
Left open, and chosen before the first run:
- Both arms have learned temperatures and scales; they differ in the penalty alone. Thresholds start at 0.5.
- Overload is the mean over heads, layers, rows and the first 256 test windows of max(0, H / Hmax - 0.75).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.attention import (
    EntropyRegularizer,
    TemperedAttention,
    entropy_report,
    record_weights,
)
from logitkit.claims.base import Check, Trial, claim, ratio
from logitkit.claims.fixtures import CODE_LM, source, text_loss
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.layers import NonlinearityLight
from logitkit.models import Transformer

HEADS, LAYERS = 4, 2


@claim(
    "attention",
    "entropy_guided",
    statement="In a language model without LayerNorm and activations the penalty takes 30 % off the overload"
    " of attention heads and costs no more than 2 % of the loss.",
    seeds=range(3),
    note="The penalty takes 28 % off the overload of these two layers, and costs nothing; 30 % was asked"
    " for.",
)
def entropy_guided(trial: Trial) -> list[Check]:
    arms = {"guided": Guided, "plain": "standard"}
    loss: dict[str, list[float]] = {arm: [] for arm in arms}
    overload: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(source(trial), seed))
        for arm, algorithm in arms.items():
            settings = CODE_LM | {"model": Private, "algorithm": algorithm}
            network = trial.train(prepared, Recipe.of(**settings, seed=seed, split_seed=seed)).network
            loss[arm].append(text_loss(network, prepared.test))
            with torch.no_grad(), record_weights(network) as weights:
                network(prepared.test[0][:256])
            overload[arm].append(entropy_report(weights).excess.mean().item())
    return [
        ratio("overload of heads: with the penalty over without", "<=", 0.7, **overload),
        ratio("test loss: with the penalty over without", "<=", 1.02, **loss),
    ]


class Private(Transformer):
    """The transformer of the paper, with the penalty's thresholds among its parameters."""

    def __init__(self, input_shape: Sequence[int], vocabulary: int) -> None:
        super().__init__(
            input_shape, vocabulary, depth=LAYERS, dim=64, heads=HEADS, attention=TemperedAttention,
            norm=lambda _: nn.Identity(), mlp=NonlinearityLight,
        )  # fmt: skip
        self.penalty = EntropyRegularizer(HEADS, LAYERS)


class Guided:
    """The standard step on the loss plus the penalty."""

    def step(self, trainer: Trainer, batch: Batch) -> Tensor:
        with record_weights(trainer.network) as weights:
            loss = trainer.objective(trainer.network, batch)
        penalty = trainer.network.backbone.penalty
        assert isinstance(penalty, EntropyRegularizer)
        trainer.optimizer.zero_grad()
        trainer.backward(loss + penalty(weights))
        trainer.optimizer.step()
        return loss.detach()
