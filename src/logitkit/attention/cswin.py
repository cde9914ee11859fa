"""Cross-shaped windows: half of the heads attend within horizontal stripes, half within vertical ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention.base import MultiheadAttention, key_mask
from logitkit.ops import attention
from logitkit.ops.grid import Size, depthwise, grid_of, merge_windows, windows
from logitkit.registry import Choice, part


def window_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens out"],
    grid: tuple[int, ...],
    size: Size,
    seen: Bool[Tensor, "batch tokens"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads tokens out"]:
    """Softmax attention within windows of `size` (height, width) of a grid of tokens in reading order.

    seen: keys that are not hidden. Windows at the border may reach over it.
    """
    heads = query.shape[1]

    def split(x: Tensor) -> Float[Tensor, "batch_parts heads window dim"]:
        return (
            _cut(x.transpose(1, 2).flatten(2), grid, size)
            .flatten(0, 1)
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
        )

    if seen is None and (grid[0] % size[0] or grid[1] % size[1]):
        seen = torch.ones(1, grid[0] * grid[1], dtype=torch.bool, device=query.device)
    mask = None
    if seen is not None:
        within = _cut(seen.expand(len(query), -1)[..., None], grid, size)
        mask = within.flatten(0, 1)[..., 0][:, None, None]
    mixed = attention(split(query), split(key), split(value), attn_mask=mask, scale=scale)
    parts = mixed.transpose(1, 2).flatten(2).unflatten(0, (len(query), -1))
    return _paste(parts, grid, size).unflatten(-1, (heads, -1)).transpose(1, 2)


def window_lepe(
    value: Float[Tensor, "batch tokens channels"],
    grid: tuple[int, ...],
    size: Size,
    weight: Float[Tensor, "channels 3 3"],
    bias: Float[Tensor, " channels"],
) -> Float[Tensor, "batch tokens channels"]:
    """The depthwise convolution of values within windows, with zeros beyond them."""
    parts = _cut(value, grid, size).flatten(0, 1).unflatten(1, size)
    near = depthwise(parts, weight, bias).flatten(1, 2).unflatten(0, (len(value), -1))
    return _paste(near, grid, size)


@part(
    "cswin",
    "attention",
    title="CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
    paper="arXiv:2107.00652",
    number=224,
    tasks=("classification",),
    search_space={"stripe": Choice(1, 2, 4)},
)
class CrossShapedAttention(MultiheadAttention):
    """Cross-shaped windows: each token sees its row and its column, in time that grows with tokens times the
    side of the image; for images of many tokens.

    Equation: the first half of the heads attends within stripes of `stripe` rows, the second within stripes
    of `stripe` columns: out_h = softmax(Q K^T / sqrt(d)) V + D(V), D a 3x3 depthwise convolution within the
    stripe, with zeros beyond it (LePE); the heads side by side go through the output projection.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same.

    Defaults: stripe = 1, that of the paper's first stage; with LePE. Without `grid` (height, width) the
    tokens are a square. A stripe as wide as the grid is attention to all tokens. Where it does not divide the
    grid, the last stripe is narrower.

    Raises: ValueError for sizes that do not fit, an odd number of heads, a stripe below 1, tokens that do not
    fill the grid, other dtypes than floats, an empty batch or NaN.

    Source: Dong et al., CVPR 2022, arXiv:2107.00652, section 3.2 and 3.3; the authors' cswin.py, which has
    the vertical stripes first.

    Not for: tokens without a grid; single layers that must relate tokens of different rows and columns.
    """

    takes = frozenset({"padding"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        grid: tuple[int, int] | None = None,
        stripe: int = 1,
        lepe: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if num_heads % 2:
            raise ValueError(f"num_heads must be even, half for each direction, got {num_heads}.")
        if stripe < 1:
            raise ValueError(f"stripe must be at least 1, got {stripe}.")
        self.grid, self.stripe = grid, stripe
        self.lepe = nn.Conv2d(embed_dim, embed_dim, 3, groups=embed_dim) if lepe else None

    def halves(self, tokens: int) -> tuple[Size, tuple[Size, Size]]:
        """The grid, and the stripes of the first and of the second half of the heads."""
        height, width = grid_of(tokens, self.grid)
        rows, columns = (min(self.stripe, height), width), (height, min(self.stripe, width))
        return (height, width), (rows, columns)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        column = key_mask(mask, "cross-shaped attention")
        seen = None if column is None else column[:, 0, :, 0]
        grid, sizes = self.halves(query.shape[-2])
        halves = zip(query.chunk(2, 1), key.chunk(2, 1), value.chunk(2, 1), sizes, strict=True)
        return torch.cat([window_attention(q, k, v, grid, size, seen) for q, k, v, size in halves], 1)

    def finish(self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = mixed.transpose(1, 2).flatten(2)
        if self.lepe is not None:
            column = key_mask(mask, "cross-shaped attention")
            value = (value if column is None else value * column).transpose(1, 2).flatten(2)
            assert self.lepe.bias is not None
            grid, sizes = self.halves(out.shape[1])
            weights, biases = self.lepe.weight[:, 0].chunk(2), self.lepe.bias.chunk(2)
            halves = zip(value.chunk(2, -1), sizes, weights, biases, strict=True)
            out = out + torch.cat([window_lepe(v, grid, size, w, b) for v, size, w, b in halves], -1)
        return self.out_proj(out)


def _cut(x: Float[Tensor, "batch tokens channels"], grid: tuple[int, ...], size: Size) -> Tensor:
    """`windows` of tokens, with zeros beyond the border."""
    return windows(F.pad(x.unflatten(1, grid), (0, 0, 0, -grid[1] % size[1], 0, -grid[0] % size[0])), size)


def _paste(parts: Float[Tensor, "batch parts window channels"], grid: tuple[int, ...], size: Size) -> Tensor:
    """The tokens whose windows are `parts`."""
    whole = grid[0] + -grid[0] % size[0], grid[1] + -grid[1] % size[1]
    return merge_windows(parts, size, whole)[:, : grid[0], : grid[1]].flatten(1, 2)
