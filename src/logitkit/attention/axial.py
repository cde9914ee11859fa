"""Axial attention: every token attends along one axis of its grid."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.attention.base import MultiheadAttention, key_mask
from logitkit.ops import attention
from logitkit.ops.grid import grid_of
from logitkit.registry import part


def axial_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens out"],
    grid: Sequence[int],
    axis: int,
    seen: Bool[Tensor, "batch tokens"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads tokens out"]:
    """Softmax attention along one axis of a grid of any number of axes, whose tokens are in reading order.

    seen: keys that are not hidden. is_causal: a token sees itself and those before it on the axis.
    """
    place = axis % len(grid)
    lines = [len(query), *(size for a, size in enumerate(grid) if a != place)]

    def along(x: Tensor) -> Float[Tensor, "lines heads length dim"]:
        # Tokens before heads, as projections have them, so that lines along the last axis are no copy.
        return x.transpose(1, 2).unflatten(1, list(grid)).movedim(1 + place, -2).flatten(0, -4)

    mask = None if seen is None else along(seen[:, None, :, None]).mT
    mixed = attention(along(query), along(key), along(value), attn_mask=mask, is_causal=is_causal)
    return mixed.unflatten(0, lines).movedim(-2, 1 + place).flatten(1, -3).transpose(1, 2)


@part(
    "axial",
    "attention",
    title="Axial Attention in Multidimensional Transformers",
    paper="arXiv:1912.12180",
    number=211,
    tasks=("classification",),
)
class AxialAttention(MultiheadAttention):
    """Axial attention: attention along one axis in turn, in time that grows with tokens times the side of the
    grid; for images, videos and other grids of many tokens.

    Equation: out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j over the keys j that differ from i on `axis`
    only. A layer along rows and one along columns relate all tokens.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same. `grid` has any number of
    axes, (frames, height, width) say; without it the tokens are a square.

    Defaults: axis=None takes the last axis in the first layer of a network, the one before in the next, and
    so on; `layer` is its number. causal=True hides what comes later on the axis.

    Raises: ValueError for sizes that do not fit, an axis that the grid does not have, tokens that do not fill
    the grid, other dtypes than floats, an empty batch or NaN.

    Source: Ho et al., arXiv:1912.12180, section 2.2.

    Not for: a single layer, which relates no tokens of different lines.
    """

    takes = frozenset({"padding"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        grid: Sequence[int] | None = None,
        axis: int | None = None,
        causal: bool = False,
        layer: int = 0,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        axes = 2 if grid is None else len(grid)
        if axis is None:
            axis = -1 - layer % axes
        if not -axes <= axis < axes:
            raise ValueError(f"axis must lie in [{-axes}, {axes}) for a grid of {axes} axes, got {axis}.")
        self.grid = None if grid is None else tuple(grid)
        self.axis, self.causal = axis, causal

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        grid = grid_of(query.shape[-2], self.grid)
        column = key_mask(mask, "axial attention")
        seen = None if column is None else column[:, 0, :, 0]
        return axial_attention(query, key, value, grid, self.axis, seen, self.causal)
