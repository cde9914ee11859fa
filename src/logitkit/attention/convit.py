"""Gated positional self-attention: attention that starts as a convolution and may leave it."""

from __future__ import annotations

import math
import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention
from logitkit.ops import attention
from logitkit.ops.grid import grid_of
from logitkit.registry import Real, part


def positional_attention(
    value: Float[Tensor, "batch heads tokens out"],
    weight: Float[Tensor, "heads 3"],
    grid: tuple[int, ...],
    attn_mask: Bool[Tensor, "*any tokens"] | Float[Tensor, "*any tokens"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads tokens out"]:
    """softmax_j(w . (dx, dy, dx^2 + dy^2)) V, (dx, dy) how far key j is right of and below query i."""
    # What depends on the query alone is no matter to the softmax: the rest is a product of three features.
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    index = torch.arange(grid[0] * grid[1], device=value.device)
    x, y = index % grid[1] - (grid[1] - 1) / 2, index // grid[1] - (grid[0] - 1) / 2
    key = torch.stack([x, y, x.square() + y.square()], -1).to(wide)
    a, b, c = weight.to(wide)[:, :, None].unbind(1)
    query = torch.stack([a - 2 * c * key[:, 0], b - 2 * c * key[:, 1], c.expand(-1, len(key))], -1)
    query, key = (t.expand(len(value), len(weight), -1, -1) for t in (query, key))
    with torch.autocast(value.device.type, enabled=False):
        mixed = attention(query, key, value.to(wide), attn_mask=attn_mask, is_causal=is_causal, scale=1.0)
    return mixed.to(value.dtype)


@part(
    "convit",
    "attention",
    title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
    paper="arXiv:2103.10697",
    number=198,
    aliases=("gpsa",),
    tasks=("classification",),
    search_space={"locality": Real(0.25, 4.0, log=True)},
)
class GatedPositionalAttention(MultiheadAttention):
    """Gated positional self-attention (GPSA): starts as a convolution and may leave it; for vision
    transformers that learn from few images.

    Equation: A^h = (1 - g_h) softmax_j(q_i . k_j / sqrt(d)) + g_h softmax_j(w_h . r_ij), g_h = sigmoid(l_h),
    r_ij = (dx, dy, dx^2 + dy^2) the offset of key j from query i on the grid. Its start: l_h = 1, values are
    the tokens themselves, and w_h = locality (2 D_x, 2 D_y, -1), so that head h looks at the offset D_h of a
    sqrt(heads) x sqrt(heads) square.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same, and the weights (batch,
    tokens, tokens) or None.

    Defaults: locality = 1, the paper's. Without `grid` (height, width) the tokens are a square.
    local_init=False starts like other attention, with random w.

    Raises: ValueError for sizes that do not fit, a locality that is not positive, tokens that do not fill the
    grid, other dtypes than floats, an empty batch or NaN. Warns where the heads are no square: as many as
    make one are then a convolution, and the others start with random w.

    Source: d'Ascoli et al., ICML 2021, arXiv:2103.10697, equations 4 to 8; the authors' convit.py.

    Not for: large data, where what a convolution knows is learned anyway.
    """

    takes = frozenset({"mask", "padding", "causal", "weights"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        grid: tuple[int, int] | None = None,
        locality: float = 1.0,
        local_init: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if not locality > 0:
            raise ValueError(f"locality must be positive, got {locality}.")
        self.grid, self.locality = grid, locality
        self.gate = nn.Parameter(torch.ones(num_heads))
        self.position = nn.Parameter(0.02 * torch.randn(num_heads, 3))
        if local_init:
            self.local_init()

    @torch.no_grad()
    def local_init(self) -> None:
        """The start as a convolution."""
        side = math.isqrt(self.num_heads)
        if side**2 != self.num_heads:
            warnings.warn(
                f"{self.num_heads} heads are no square: only {side**2} of them start as a convolution.",
                stacklevel=3,
            )
        head = torch.arange(side**2)
        across, down = head // side - (side - 1) / 2, head % side - (side - 1) / 2
        self.position[: side**2] = self.locality * torch.stack([2 * across, 2 * down, 0 * across - 1], -1)
        self.in_proj.weight[2 * self.embed_dim :] = torch.eye(self.embed_dim)
        if self.in_proj.bias is not None:
            self.in_proj.bias[2 * self.embed_dim :] = 0

    def gates(self) -> Float[Tensor, " heads"]:
        """How much of each head's weights is positional."""
        return self.gate.sigmoid()

    @torch.no_grad()
    def nonlocality(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, " heads"]:
        """Mean distance on the grid between a token and what it attends to, by head."""
        height, width = grid_of(x.shape[1], self.grid)
        index = torch.arange(height * width, device=x.device)
        places = torch.stack([index // width, index % width], -1).to(x.dtype)
        weights = self(x, need_weights=True, average_attn_weights=False)[1]
        return (weights * torch.cdist(places, places)).sum(-1).mean((0, 2))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        is_causal, grid = causal is not None, grid_of(key.shape[-2], self.grid)
        content = attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        positional = positional_attention(value, self.position, grid, mask, is_causal)
        return torch.lerp(content, positional, self.gates()[:, None, None].to(content.dtype))
