"""The rational function by Horner's rule on whole arrays."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def group_rational(
    x: Float[Tensor, "rows channels"], a: Float[Tensor, " m1"], b: Float[Tensor, "groups n"]
) -> Float[Tensor, "rows channels"]:
    per_channel = b.T.repeat_interleave(x.shape[1] // len(b), dim=1)
    inner = x * _horner(per_channel, x)
    return _horner(a, x) / (1 + torch.where(inner < 0, -inner, inner))


def _horner(c: Tensor, x: Tensor) -> Tensor:
    """c_0 + c_1 x + c_2 x^2 + .."""
    *rest, value = c.unbind()
    for each in reversed(rest):
        value = value * x + each
    return value
