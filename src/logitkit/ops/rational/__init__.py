"""Rational functions with learned coefficients, as activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import implementation
from logitkit.ops.rational import reference


def group_rational(
    x: Float[Tensor, "..."], a: Float[Tensor, " m1"], b: Float[Tensor, "groups n"], axis: int = -1
) -> Float[Tensor, "..."]:
    """P(x) / Q(x), P of coefficients a_0.., and Q = 1 + |b_1 x + .. + b_n x^n| with a row of b for each of as
    many groups of neighbouring channels along `axis`. Half precision is computed in float32, as its range
    ends at small fifth powers; the result has the dtype of x, which a and b are taken in.

    The derivative of |s| at 0 is 1: with torch's 0, a denominator that starts at b = 0 would stay there.

    Error: at most 1e-6 (sum |a_k x^k| + |y| sum |b_k x^k|) / Q for degrees up to 5 (float32).

    Pays: always on a CPU. Forward and backward write one array each and keep nothing but x; plain torch makes
    an array in every step of both polynomials. Second derivatives are those of plain torch.

    Raises: ValueError for other dtypes than floats, coefficients of other ranks or none, or groups that do
    not divide the channels.

    Source: Yang and Wang, ICLR 2025, arXiv:2409.10594, equation 12.
    """
    _check(x, a, b, axis)
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    channels_last = x.movedim(axis, -1)
    rows = channels_last.to(wide).reshape(-1, x.shape[axis])
    y = implementation(reference, x, cpu=True).group_rational(rows, a.to(wide), b.to(wide))
    return y.to(x.dtype).view(channels_last.shape).movedim(-1, axis).contiguous()


def _check(x: Tensor, a: Tensor, b: Tensor, axis: int) -> None:
    for tensor, name in ((x, "x"), (a, "a"), (b, "b")):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be one of the {x.ndim} axes of x, got {axis}.")
    if a.ndim != 1 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"a must be (m + 1,) and b (groups, n), neither empty, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if x.shape[axis] % len(b):
        raise ValueError(f"groups must divide the channels, got {len(b)} groups of {x.shape[axis]} channels.")
