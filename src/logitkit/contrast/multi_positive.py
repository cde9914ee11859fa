"""Softmax over all labels with several positives: the reference arm of rankings."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.contrast.base import RankingLoss
from logitkit.registry import part


@part(
    "multi_positive",
    "contrast",
    title="InfoNCE with every relevant label as a positive",
    aliases=("info_nce",),
    tasks=("multilabel",),
)
class MultiPositive(RankingLoss):
    """Softmax over all labels with a mean over the relevant ones, which compete with each other.

    Equation: l = -1/|P| sum_{y in P} log( e^{s_y} / sum_k e^{s_k} ), P the row's relevant labels.

    Shapes: scores (batch, labels), target a mask (batch, labels) of bool or 0 and 1, or whole-number lists
    (batch, most) filled up with -1; returns a scalar in nats, or (batch,) with `reduction="none"`. Rows
    without a relevant label count nothing.

    Defaults: no weights. Cosines as scores want dividing by a temperature first.

    Raises: ValueError for wrong shapes or dtypes, NaN scores, labels out of range, an empty batch.

    Source: InfoNCE of van den Oord, Li, Vinyals, arXiv:1807.03748, averaged over positives as in Khosla et
    al., arXiv:2004.11362 (L_out).

    Not for: many labels per example, where no label can come near probability 1 (see `decoupled_softmax`).
    """

    def terms(
        self, scores: Float[Tensor, "batch labels"], positive: Bool[Tensor, "batch labels"]
    ) -> Float[Tensor, "batch labels"]:
        return -torch.log_softmax(scores, dim=1)
