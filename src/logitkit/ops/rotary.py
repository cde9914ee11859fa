"""Rotary positions: a pair of coordinates turned by an angle that grows with the position."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary(
    x: Float[Tensor, "*batch tokens dim"], positions: Int[Tensor, " tokens"], base: float = 10_000.0
) -> Float[Tensor, "*batch tokens dim"]:
    """The coordinates (x_c, x_{c + dim/2}) turned by the angle position * base^(-2c / dim).

    The product of a query at i and a key at j, both turned, depends on i and j by i - j only. The halves are
    paired as in Llama. Angles are computed in float32 at least.

    Raises: ValueError for an odd dim.

    Source: Su et al., arXiv:2104.09864, equation 34.
    """
    dim = x.shape[-1]
    if dim % 2:
        raise ValueError(f"rotary positions need an even number of features per head, got {dim}.")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequencies = base ** (-torch.arange(0, dim, 2, device=x.device, dtype=wide) / dim)
    angles = positions.to(wide)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(wide).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
