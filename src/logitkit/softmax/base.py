"""The slot: a function `f(x, dim=-1)` from scores to weights, and a module that also gives log-weights.

The log-weights are what a loss reads, so that any loss composes with any normaliser.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_numbers

__all__ = ["Normalizer", "check_scores"]


def check_scores(x: Tensor, dim: int) -> Tensor:
    """Return floating-point scores `x`, in float32 if they came in half precision.

    Raises ValueError for another dtype, no axis `dim`, an empty tensor or NaN. -inf is a masked score.
    """
    if not x.is_floating_point():
        raise ValueError(f"scores must be floating point, got {x.dtype}.")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"scores have no axis {dim}, their shape is {tuple(x.shape)}.")
    if x.numel() == 0:
        raise ValueError(f"scores are empty, shape {tuple(x.shape)}; expected at least one row of numbers.")
    check_numbers(x, "scores")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Normalizer(nn.Module):
    """Base of normalisers: subclasses define `log`, and `forward` where it is not simply its exponential.

    dim: the axis whose weights sum to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def log(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log-weights, in at least float32 because a loss follows."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Weights along `dim`, in the dtype of `x`."""
        return self.log(x).exp().to(x.dtype)
