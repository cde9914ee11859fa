"""The Inception mixer: convolution and pooling for some channels of a grid, attention for the others."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.ops import attention
from logitkit.registry import Choice, part

Maps = Float[Tensor, "batch channels height width"]


def ramp(stages: int, start: float = 1 / 3, end: float = 11 / 12) -> list[float]:
    """The share of channels that attention gets in each stage, rising evenly. Raises ValueError for shares
    outside [0, 1]."""
    check_whole(stages=stages)
    if not 0 <= start <= end <= 1:
        raise ValueError(f"shares must rise within [0, 1], got {start} and {end}.")
    return torch.linspace(start, end, stages).tolist()


@part(
    "iformer",
    "layers",
    title="Inception Transformer",
    paper="arXiv:2205.12956",
    number=152,
    replaces="mixer",
    aliases=("inception_mixer",),
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"attn_heads": Choice(1, 2, 3), "pool": Choice(1, 2)},
)
class InceptionMixer(nn.Module):
    """Inception mixer: convolution and max pooling see what is fine, attention what is coarse; in the place
    of attention on grids of tokens.

    Equation: the channels are X_c, X_p and X_l, of which attention gets X_l, attn_heads of `heads` parts, and
    the other two half each of what is left. Y_c = gelu(DW(W_c X_c)) and Y_p = gelu(W_p maxpool(X_p)) look at
    3x3 tokens and are twice as wide; Y_l = up(attention(mean pool(X_l))) is pooled over pool x pool tokens
    and repeated as often. Y = (Y_c, Y_p, Y_l), out = W (Y + DW(Y)).

    Shapes: x (batch, height * width, dim) of a grid in reading order -> same, unitless; `mix` takes and gives
    maps (batch, dim, height, width) of any size.

    Defaults: half of the heads attend, without pooling. In the paper attention's share grows with depth, see
    `ramp`, and pool is 2 in the first two stages. Cells of the pooling that reach over the border hold fewer
    tokens.

    Raises: ValueError for heads that do not divide dim, attn_heads outside [0, heads], an odd number of
    channels left, sizes below 1, tokens that do not fill the grid, inputs of another width or dtype, or none.

    Source: Si et al., NeurIPS 2022, arXiv:2205.12956, section 3.1; the authors' inception_transformer.py for
    the order and the widths.

    Not for: tokens without a grid, and masks.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], heads: int = 4, attn_heads: int | None = None, pool: int = 1
    ) -> None:
        super().__init__()
        check_whole(dim=dim, heads=heads, pool=pool, height=grid[0], width=grid[1])
        attn_heads = -(-heads // 2) if attn_heads is None else attn_heads
        if dim % heads or not 0 <= attn_heads <= heads:
            raise ValueError(
                "heads must divide dim, and attn_heads lie in [0, heads], got"
                f" dim {dim}, heads {heads} and attn_heads {attn_heads}."
            )
        low = dim // heads * attn_heads
        high = dim - low
        if high % 2:
            raise ValueError(f"an even number of channels must be left by attention, got {high} of {dim}.")
        self.dim, self.grid, self.pool = dim, grid, pool
        self.low, self.high, self.attn_heads = low, high, attn_heads
        self.widen = nn.Conv2d(high // 2, high, 1, bias=False) if high else None
        self.depthwise = nn.Conv2d(high, high, 3, padding=1, groups=high, bias=False) if high else None
        self.pooled = nn.Conv2d(high // 2, high, 1) if high else None
        self.in_proj = nn.Linear(low, 3 * low) if low else None
        wide = 2 * high + low
        self.fuse = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.out_proj = nn.Conv2d(wide, dim, 1)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        if x.ndim != 3 or x.shape[1] != self.grid[0] * self.grid[1]:
            wanted = f"(batch, {self.grid[0] * self.grid[1]}, {self.dim})"
            raise ValueError(f"x must have shape {wanted}, got {tuple(x.shape)}.")
        return self.mix(check_tokens(x, self.dim).mT.unflatten(2, self.grid)).flatten(2).mT

    def mix(self, x: Maps) -> Maps:
        """The mixed maps."""
        y = torch.cat(self.branches(x), 1)
        return self.out_proj(y + self.fuse(y))

    def branches(self, x: Maps) -> list[Maps]:
        """What convolution, pooling and attention make of their channels, those that have any."""
        conv, pool, low = x.split([self.high // 2, self.high // 2, self.low], 1)
        found = []
        if self.widen is not None and self.depthwise is not None and self.pooled is not None:
            found.append(F.gelu(self.depthwise(self.widen(conv))))
            found.append(F.gelu(self.pooled(F.max_pool2d(pool, 3, 1, 1))))
        if self.in_proj is not None:
            found.append(self._attend(low))
        return found

    def _attend(self, x: Maps) -> Maps:
        assert self.in_proj is not None
        height, width = x.shape[2:]
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool, ceil_mode=True)
        heads = self.in_proj(x.flatten(2).mT).unflatten(-1, (3 * self.attn_heads, -1)).transpose(1, 2)
        mixed = attention(*heads.chunk(3, 1)).transpose(1, 2).flatten(2).mT.unflatten(2, x.shape[2:])
        for axis in (2, 3) if self.pool > 1 else ():
            mixed = mixed.repeat_interleave(self.pool, axis)
        return mixed[:, :, :height, :width]
