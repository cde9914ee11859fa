"""155: rank-augmented linear attention has buffers and outputs of higher rank than linear attention, and is
more accurate.

Set beforehand: the small vision transformer on digits (`TINY_VIT`) for every arm; rank as exp of the entropy
of the singular values' shares; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- Linear attention is elu + 1, the part `linear`. The learned positions of the transformer stay in every arm.
- Ranks are those of the test images, in the mean over images, heads and layers, in the trained network.
"""

from __future__ import annotations

import torch

from logitkit import data
from logitkit.attention import LinearAttention, RankAugmentedAttention, rank_report
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, ratio
from logitkit.claims.fixtures import TINY_VIT
from logitkit.engine import Prepared, Recipe


@claim(
    "attention",
    "rala",
    statement="In a small vision transformer on digits, rank-augmented linear attention has buffers and"
    " outputs of 1.2 times the entropy rank of linear attention, is half a point more accurate, and within"
    " a point of softmax.",
    seeds=range(3),
    note="Buffers hold 1.8 of 8 possible directions in both arms: features of elu + 1 are positive, so that"
    " their mean outweighs the rest, and weights of keys change that little. What raises the rank of the"
    " output is the gate and the convolution.",
)
def rala(trial: Trial) -> list[Check]:
    hurry = {"batch_size": 256} if trial.quick else {}
    right: dict[str, list[float]] = {"rala": [], "linear": [], "softmax": []}
    buffer: dict[str, list[float]] = {"rala": [], "linear": []}
    output: dict[str, list[float]] = {"rala": [], "linear": []}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(data.load("digits"), seed))
        for arm in right:
            recipe = Recipe.of(**{**TINY_VIT, **hurry}, attention=arm, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network.eval()
            right[arm].append(accuracy(network, prepared.test))
            if arm in buffer:
                ranks = ranks_in(network, prepared.test[0])
                buffer[arm].append(ranks["buffer entropy rank"])
                output[arm].append(ranks["output entropy rank"])
    return [
        ratio("entropy rank of the buffer: RALA over linear attention", ">=", 1.2, **buffer),
        ratio("entropy rank of the output: RALA over linear attention", ">=", 1.2, **output),
        difference("test accuracy, points: RALA minus linear attention", ">=", 0.5,
                   rala=right["rala"], linear=right["linear"]),
        difference("test accuracy, points: RALA minus softmax", ">=", -1,
                   rala=right["rala"], softmax=right["softmax"]),
    ]  # fmt: skip


@torch.no_grad()
def ranks_in(network: torch.nn.Module, x: torch.Tensor) -> dict[str, float]:
    """`rank_report` of each layer of attention on what it reads, in the mean over layers."""
    reports: list[dict[str, float]] = []

    def report(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, RankAugmentedAttention | LinearAttention)
        handle.remove()
        reports.append(rank_report(layer, inputs[0]))

    for layer in [m for m in network.modules() if isinstance(m, RankAugmentedAttention | LinearAttention)]:
        handle = layer.register_forward_pre_hook(report)
        network(x)
    return {key: sum(r[key] for r in reports) / len(reports) for key in reports[0]}
