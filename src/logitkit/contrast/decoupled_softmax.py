"""Decoupled softmax: several positives per example that do not compete with each other."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.contrast.base import RankingLoss
from logitkit.registry import part


def decoupled_softmax(
    scores: Float[Tensor, "batch labels"], positive: Bool[Tensor, "batch labels"]
) -> Float[Tensor, "batch labels"]:
    """log(1 + sum_{k not in P} e^{s_k - s_y}) for every label y; see `DecoupledSoftmax`."""
    # Finite, so that a row without negatives has a gradient, of 0.
    lowest = torch.finfo(scores.dtype).min
    negatives = scores.masked_fill(positive, lowest).logsumexp(dim=1, keepdim=True)
    return F.softplus(negatives - scores)


@part(
    "decoupled_softmax",
    "contrast",
    title="Dual-Encoders for Extreme Multi-Label Classification",
    paper="arXiv:2310.10636",
    number=10,
    replaces="multi_positive",
    aliases=("dexml",),
    tasks=("multilabel",),
)
class DecoupledSoftmax(RankingLoss):
    """Decoupled softmax: rank very many labels of which several are relevant, frequent and rare ones alike.

    Equation: l = 1/|P| sum_{y in P} -log( e^{s_y} / (e^{s_y} + sum_{k not in P} e^{s_k}) ), P the row's
    relevant labels: the others of them leave the denominator, so every one can reach probability 1.

    Shapes: scores (batch, labels), target a mask (batch, labels) of bool or 0 and 1, or whole-number lists
    (batch, most) filled up with -1; returns a scalar in nats, or (batch,) with `reduction="none"`. Rows
    without a relevant label count nothing. `ops.decoupled_softmax` is the same on embeddings of queries and
    labels, without the matrix of their scores.

    Defaults: the scores as they are; the paper's are cosines over a temperature (0.05 and less), which is
    what `head=normalized_softmax` gives. `weight`, none in the paper, weighs a row's labels.

    Raises: ValueError for wrong shapes or dtypes, NaN scores, labels out of range, an empty batch.

    Source: Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon, ICLR 2024, arXiv:2310.10636, section 4.2.
    The mean is over rows with a relevant label, where the authors' code divides by all rows.

    Not for: one label per example, where it is cross-entropy.
    """

    def terms(
        self, scores: Float[Tensor, "batch labels"], positive: Bool[Tensor, "batch labels"]
    ) -> Float[Tensor, "batch labels"]:
        return decoupled_softmax(scores, positive)
