"""What layers check of their input. The slot is the layer that a part stands in for, which its card names in
`replaces` and which fixes its signature:

    norm    Part(dim, ...)                                          as `nn.LayerNorm`
    mlp     Part(dim, hidden, ...)                                  the feed-forward part of a transformer
    linear  Part(in_features, out_features, ...)                    as `nn.Linear`
    conv    Part(in_channels, out_channels, kernel_size, stride=1)  as `nn.Conv2d`
    mixer   Part(dim, grid, ...)                                    a grid's tokens, in the place of attention
    block   Part(channels, ...)                                     (batch, channels, h, w) -> same shape

A part for two places names both, `norm+mlp`, and tells them apart by its arguments.

A layer that trains by more than the loss has a number `lam` and a method `penalty()`, a scalar; training from
a recipe adds lam times it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ChannelNorm", "DropPath", "check_maps", "check_tokens", "check_whole"]


def check_tokens(x: Tensor, dim: int) -> Float[Tensor, "*batch dim"]:
    """Return `x`, real numbers of shape (..., dim), unchanged.

    Raises ValueError for another width, a dtype that is not floating point, or no rows.
    """
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(f"x must have shape (..., {dim}), got {tuple(x.shape)}.")
    _check_real(x)
    return x


def check_maps(x: Tensor, channels: int) -> Float[Tensor, "batch channels h w"]:
    """Return `x`, real numbers of shape (batch, channels, h, w), unchanged.

    Raises ValueError for another rank or number of channels, a dtype that is not floating point, or an empty
    batch.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (batch, {channels}, h, w), got {tuple(x.shape)}.")
    _check_real(x)
    return x


def check_whole(**values: int) -> None:
    """Raise ValueError naming the first value that is not a whole number of at least 1."""
    for name, value in values.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


class ChannelNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of maps (batch, channels, h, w)."""

    def forward(self, input: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class DropPath(nn.Module):
    """Stochastic depth: in training each example's branch is 0 with probability `rate`, and otherwise
    divided by 1 - rate.

    Raises: ValueError for a rate outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"the rate of dropped paths must lie in [0, 1), got {rate}.")
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        if not (self.training and self.rate):
            return x
        kept = x.new_empty(len(x), *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


def _check_real(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}.")
    if x.numel() == 0:
        raise ValueError(f"x is empty, shape {tuple(x.shape)}; expected at least one row.")
