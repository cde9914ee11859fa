"""MadaCos: a cosine head whose scale and margin follow the median example of each batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_positive
from logitkit.ops.sphere import cosine
from logitkit.registry import Choice, Real, part

LOWEST_SCALE = 32.0
# The median cosine counts as at most this, because the scale grows as 1 / (1 - median).
HIGHEST_MEDIAN = 1 - 1e-4


@torch.no_grad()
def madacos_scale_and_margin(
    cosines: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    alpha: float = 0.02,
    statistic: Literal["default", "mean", "median"] = "default",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Scale and margin that give the batch's median example the probability alpha; see `MadaCosHead`."""
    y = target[:, None]
    median, row = cosines.gather(1, y)[:, 0].clamp(max=HIGHEST_MEDIAN).median(dim=0)
    odds = math.log(alpha / (1 - alpha))
    scale = ((math.log(9999999) - odds) / (1 - median)).clamp(min=LOWEST_SCALE)
    log_b = torch.logsumexp((scale * cosines).scatter(1, y, -torch.inf), dim=1)
    if statistic == "mean":
        log_b = torch.logsumexp(log_b, dim=0) - math.log(len(log_b))
    else:
        log_b = log_b.median() if statistic == "median" else log_b.gather(0, row[None])[0]
    return scale, (median - (log_b + odds) / scale).clamp(min=0)


@part(
    "madacos",
    "heads",
    title="Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval",
    paper="arXiv:2308.04008",
    number=17,
    replaces="cosine",
    aliases=("cfcd",),
    needs=("target",),
    search_space={"alpha": Real(0.01, 0.5, log=True), "statistic": Choice("default", "mean", "median")},
    no_gradcheck="scale and margin depend on the batch's cosines and are constants in the gradient",
)
class MadaCosHead(nn.Module):
    """Class scores by angle with a scale and a margin that need no tuning: they are set, in every training
    batch, by how well its median example is doing. For retrieval among classes not seen in training.

    Equation: logits_k = s (cos(theta_k) - m [k = y]). With c the lower median over the batch of the labels'
    cosines, s = max(32, log(9999999 (1 - alpha) / alpha) / (1 - c)) and
    m = max(0, c - log(B alpha / (1 - alpha)) / s), B = sum_{k != y} exp(s cos(theta_k)) of the median example
    (`statistic="default"`), or its mean or median over the batch. So the median example has probability alpha
    and one with cosine 1 and the same B has 1 - 1e-7. No gradient goes through s and m.

    Shapes: features (batch, in_features), target (batch,) integer labels or None -> logits
    (batch, num_classes), in at least float32. s and m act in training with a target; otherwise there is no
    margin, and the scale is that of the last training batch (buffer `scale`, 32 before).

    Defaults: alpha = 0.02 and the median example's B, as the authors' runs. Class vectors start as directions
    drawn uniformly on the sphere. c counts as at most 1 - 1e-4, so s stays below 2.1e5.

    Raises: ValueError for an alpha outside (0, 1), an unknown statistic, fewer than 2 classes, features of
    another shape or dtype, an empty batch, or labels out of range.

    Source: Zhu, Yang, Wang, Tan, Fang, ICCV 2023, arXiv:2308.04008, section 3.2, and the authors' code. Their
    second stage is `LocalTripletLoss`. Statistics are those of one process's batch.

    Not for: batches of a few examples, whose median says little; features whose length carries the signal.
    """

    scale: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        alpha: float = 0.02,
        statistic: Literal["default", "mean", "median"] = "default",
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features)
        if not num_classes >= 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {alpha}.")
        if statistic not in ("default", "mean", "median"):
            raise ValueError(f"statistic must be 'default', 'mean' or 'median', got {statistic!r}.")
        self.in_features = in_features
        self.num_classes = num_classes
        self.alpha = alpha
        self.statistic = statistic
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))
        self.register_buffer("scale", torch.tensor(LOWEST_SCALE))

    def forward(
        self, features: Float[Tensor, "batch in_features"], target: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        scores = cosine(check_features(features, self.in_features), self.weight)
        if target is None or not self.training:
            return self.scale.to(scores.dtype) * scores
        y = check_labels(target, scores.shape[0], self.num_classes)
        scale, margin = madacos_scale_and_margin(scores, y, self.alpha, self.statistic)
        self.scale.copy_(scale)
        return scale * scores.scatter_add(1, y[:, None], -margin.expand(len(y), 1))
