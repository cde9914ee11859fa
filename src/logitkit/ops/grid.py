"""Tokens on a grid, (batch, height, width, channels): parts of it and back, depthwise convolution, positions.

Whoever calls pads to sizes that divide.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.rotary import rotary

__all__ = ["depthwise", "grid_of", "lattices", "merge_lattices", "merge_windows", "rotary_2d", "windows"]

Size = tuple[int, int]


def grid_of(tokens: int, grid: tuple[int, ...] | None) -> tuple[int, ...]:
    """The sizes of a grid of so many tokens: `grid`, (height, width) in most places, or a square where it is
    None.

    Raises ValueError where the tokens do not fill it.
    """
    sizes = (math.isqrt(tokens),) * 2 if grid is None else grid
    if math.prod(sizes) != tokens:
        shape = "x".join(map(str, sizes))
        wanted = "a square grid; say which with grid=(height, width)" if grid is None else shape
        raise ValueError(f"the tokens must fill {wanted}, got {tokens} of them.")
    return sizes


def windows(
    x: Float[Tensor, "batch height width channels"], size: Size
) -> Float[Tensor, "batch parts tokens channels"]:
    """Windows of `size` (height, width), in reading order, and so are the tokens of each.

    (1, width) are rows, (height, 1) columns, (s, width) and (height, s) stripes.
    """
    p, q = _divides(size, x.shape[1:3])
    return x.unflatten(2, (-1, q)).unflatten(1, (-1, p)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge_windows(
    parts: Float[Tensor, "batch parts tokens channels"], size: Size, grid: Size
) -> Float[Tensor, "batch height width channels"]:
    """The grid whose `windows(x, size)` are `parts`."""
    p, q = _divides(size, grid)
    across = grid[1] // q
    return parts.unflatten(2, (p, q)).unflatten(1, (-1, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def lattices(
    x: Float[Tensor, "batch height width channels"], size: Size
) -> Float[Tensor, "batch parts tokens channels"]:
    """Dilated windows: `size` (height, width) tokens spread evenly over the whole grid, grid / size apart; in
    the order of their first tokens."""
    p, q = _divides(size, x.shape[1:3])
    return x.unflatten(2, (q, -1)).unflatten(1, (p, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(1, 2)


def merge_lattices(
    parts: Float[Tensor, "batch parts tokens channels"], size: Size, grid: Size
) -> Float[Tensor, "batch height width channels"]:
    """The grid whose `lattices(x, size)` are `parts`."""
    p, q = _divides(size, grid)
    step = grid[1] // q
    x = parts.unflatten(2, (p, q)).unflatten(1, (-1, step))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


def depthwise(
    x: Float[Tensor, "batch height width channels"],
    weight: Float[Tensor, "channels kh kw"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch height width channels"]:
    """Each channel's convolution with its own kernel of odd size, zeros outside the grid."""
    kh, kw = weight.shape[1:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"kernels must have an odd size, got {kh}x{kw}.")
    maps = x.permute(0, 3, 1, 2)
    mixed = F.conv2d(maps, weight[:, None], bias, padding=(kh // 2, kw // 2), groups=len(weight))
    return mixed.permute(0, 2, 3, 1)


def rotary_2d(
    x: Float[Tensor, "*batch tokens dim"], grid: tuple[int, ...], base: float = 10_000.0
) -> Float[Tensor, "*batch tokens dim"]:
    """The tokens of a grid in reading order, the first half of the features turned by the row and the second
    by the column, each as `rotary` does.

    Raises ValueError for a dim that 4 does not divide.
    """
    if x.shape[-1] % 4:
        raise ValueError(f"positions on a grid need a multiple of 4 features per head, got {x.shape[-1]}.")
    index = torch.arange(grid[0] * grid[1], device=x.device)
    by_row, by_column = x.chunk(2, -1)
    return torch.cat([rotary(by_row, index // grid[1], base), rotary(by_column, index % grid[1], base)], -1)


def _divides(size: Size, grid: tuple[int, ...]) -> Size:
    (p, q), (height, width) = size, grid
    if min(p, q) < 1 or height % p or width % q:
        raise ValueError(f"parts of {p}x{q} tokens do not divide a grid of {height}x{width}; pad it first.")
    return size
