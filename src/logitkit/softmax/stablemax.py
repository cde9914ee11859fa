"""StableMax: a softmax that grows linearly, so that its loss does not round to zero."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_labels, check_logits
from logitkit.registry import part
from logitkit.softmax.base import Normalizer, check_scores


def log_growth(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log s(x) = sign(x) log(1 + |x|), with derivative 1 / (1 + |x|) also at 0."""
    return torch.where(x < 0, -torch.log1p(-x.clamp(max=0)), torch.log1p(x.clamp(min=0)))


def log_stablemax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """log of `stablemax`, in at least float32."""
    return torch.log_softmax(log_growth(check_scores(x, dim)), dim)


def stablemax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """s(x_i) / sum_j s(x_j) along `dim`; see `StableMax`."""
    return torch.softmax(log_growth(check_scores(x, dim)), dim).to(x.dtype)


def collapse_fraction(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, ""]:
    """Share of rows in softmax collapse: computed in `dtype`, sum_k exp(z_k) equals exp(z_y), so that the
    loss and the gradient of the label's logit are exactly 0 (the paper's softmax collapse)."""
    target = check_labels(target, logits.shape[0], check_logits(logits).shape[1])
    z = logits.to(dtype)
    terms = (z - z.amax(dim=-1, keepdim=True)).exp()
    label = terms.gather(-1, target[:, None])[:, 0]
    return (terms.sum(dim=-1) == label).float().mean()


@part(
    "stablemax",
    "softmax",
    title="Grokking at the Edge of Numerical Stability",
    paper="arXiv:2501.04697",
    number=46,
    replaces="softmax",
)
class StableMax(Normalizer):
    """StableMax: train on past separation, as grokking needs, without the loss rounding to zero.

    Equation: p_i = s(x_i) / sum_j s(x_j), s(x) = x + 1 for x >= 0 and 1 / (1 - x) for x < 0. Computed as the
    softmax of log s(x) = sign(x) log(1 + |x|), so neither branch is ever evaluated where it is singular.

    Shapes: x of any shape, weights of the same, summing to 1 along `dim`. Half-precision scores are computed
    in float32; weights come back in the scores' dtype, `log` in float32. Its cross-entropy is any
    classification loss on `log(x)`.

    Defaults: the last axis. The paper has no constants to choose; its code computes the loss in float64, and
    so does this part on float64 scores.

    Raises: ValueError for scores that are not floating point, empty or NaN, or a missing axis.

    Source: Prieto, Barsbey, Mediano, Birdal, ICLR 2025, arXiv:2501.04697, the definitions of StableMax and s,
    and the proposition that it is a softmax of g(x) = sign(x) log(1 + |x|).

    Not for: confident probabilities out of modest logits: weights fall off polynomially, a logit of 9 above
    nine zeros still leaves p = 0.53.
    """

    def log(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p, in at least float32."""
        return log_stablemax(x, self.dim)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return stablemax(x, self.dim)
