"""Mean squared error: the reference arm of regression."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from logitkit.losses.base import RegressionLoss
from logitkit.registry import part


def mse(output: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """(f - y)^2 per row."""
    return (output - target) ** 2


@part("mse", "losses", title="Mean squared error", aliases=("l2",), tasks=("regression",))
class MSE(RegressionLoss):
    """Squared error, the default objective of regression: its minimiser is the conditional mean.

    Equation: l = (f - y)^2.

    Shapes: output and target (batch,) or (batch, 1), in the units of the target; returns a scalar in the
    squared unit, or (batch,) with `reduction="none"`.

    Defaults: as `torch.nn.MSELoss`.

    Raises: ValueError for wrong shapes or dtypes, lengths that differ, NaN, an empty batch.

    Source: `torch.nn.MSELoss`; least squares is Legendre's (1805) and Gauss's (1809).

    Not for: targets with outliers or heavy tails, which dominate the sum (see `huber`).
    """

    def per_example(
        self, output: Float[Tensor, " batch"], target: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return mse(output, target)
