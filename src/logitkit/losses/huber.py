"""Huber's loss: squared error near the target, absolute error beyond."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import RegressionLoss
from logitkit.ops import check_positive
from logitkit.registry import Real, part


def huber(
    output: Float[Tensor, " batch"], target: Float[Tensor, " batch"], delta: float = 1.0
) -> Float[Tensor, " batch"]:
    """e^2 / 2 where |e| <= delta and delta (|e| - delta / 2) beyond, e = f - y, per row."""
    return F.huber_loss(output, target, reduction="none", delta=delta)


@part(
    "huber",
    "losses",
    title="Huber loss",
    aliases=("smooth_l1",),
    replaces="mse",
    tasks=("regression",),
    search_space={"delta": Real(0.1, 10.0, log=True)},
)
class Huber(RegressionLoss):
    """Huber's loss: regression when some targets are outliers.

    Equation: with e = f - y, l = e^2 / 2 where |e| <= delta, and delta (|e| - delta / 2) beyond.

    Shapes: output and target (batch,) or (batch, 1), in the units of the target; returns a scalar in the
    squared unit, or (batch,) with `reduction="none"`.

    Defaults: delta = 1 as `torch.nn.HuberLoss`, where it equals `torch.nn.SmoothL1Loss`; for another
    beta = delta, smooth L1 is this divided by delta. Set it to the size of an ordinary error.

    Raises: ValueError for delta <= 0, wrong shapes or dtypes, lengths that differ, NaN, an empty batch.

    Source: Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics, 1964.

    Not for: estimating the mean of a skewed target, which it pulls towards the median.
    """

    def __init__(self, delta: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        check_positive(delta=delta)
        self.delta = delta

    def per_example(
        self, output: Float[Tensor, " batch"], target: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return huber(output, target, self.delta)
