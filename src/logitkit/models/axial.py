"""The axial transformer: an encoder of images, and a model of images pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from logitkit.attention import AxialAttention
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.models.vit import Block, Layers
from logitkit.ops import draw_gumbel, values_visible
from logitkit.registry import Choice, Whole, part

ROWS, COLUMNS = 1, 0  # the axis along which a row, and a column, is read


@part(
    "axial",
    "models",
    title="Axial Attention in Multidimensional Transformers",
    paper="arXiv:1912.12180",
    number=211,
    companion_of="axial",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"depth": Whole(2, 6), "dim": Choice(32, 64, 96)},
)
class AxialEncoder(Backbone):
    """Axial transformer encoder: a backbone for images of many tokens, whose blocks attend along rows and
    columns in turn.

    Equation: z_0 = patches(x) E + P_row + P_column; z <- z + A(LN z), z <- z + MLP(LN z), A along the row in
    even blocks and along the column in odd ones; feature map = LN z, features = its mean over tokens.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, dim), pooled to (batch, dim),
    unitless.

    Defaults: depth 4, dim 64, 4 heads, for a laptop; the patch is the smallest power of two that leaves at
    most 256 tokens. One learned position for each row and each column, as in the paper.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a `dim` that `heads` does
    not divide, a depth below 2, a patch below 1, an input of another shape or dtype, an empty batch or NaN.

    Source: Ho et al., arXiv:1912.12180, section 3.1; the authors' axial/transformers.py.

    Not for: images of a few tokens, where attention to all of them costs as little.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        depth: int = 4,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        patch: int | None = None,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "axial")
        if depth < 2:
            raise ValueError(
                f"depth must be at least 2, a block along rows and one along columns, got {depth}."
            )
        patch, grid = patches_of(height, width, patch, most=256)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.positions = Positions(grid, dim)
        self.blocks = nn.Sequential(
            *(axial_block(grid, dim, heads, ROWS - i % 2, dropout=dropout) for i in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        patches = self.patches(F.pad(check_inputs(x, self.input_shape), self.padding))
        return self.norm(self.blocks((patches.permute(0, 2, 3, 1) + self.positions()).flatten(1, 2)))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map.mean(dim=1)


class AxialImageLM(nn.Module):
    """A distribution over images of whole numbers, pixel by pixel in reading order, channel after channel.

    Equation: log p(x) = sum_i log softmax(f(x_<i))_{x_i}. What lies above a pixel reaches it through an outer
    decoder u, blocks along whole rows and along columns downwards in turn, shifted down by a row; what lies
    left of it through an inner decoder, blocks along the row up to it, which reads the embeddings shifted
    right, plus u. Earlier channels are read by an axial encoder, whose result is added to what both read.

    Shapes: images (batch, channels, height, width) of whole numbers in [0, vocabulary).

    size: (height, width). outer, inner, encoder: numbers of blocks; outer and encoder, which several channels
    need, are even. Raises ValueError for other sizes, and images of another shape, dtype or range.

    Source: Ho et al., arXiv:1912.12180, section 3; the authors' axial/transformers.py, which reads earlier
    channels as real numbers through a convolution where here each value has an embedding.
    """

    def __init__(
        self,
        size: tuple[int, int],
        vocabulary: int,
        dim: int = 64,
        heads: int = 4,
        outer: int = 2,
        inner: int = 2,
        channels: int = 1,
        encoder: int = 2,
    ) -> None:
        super().__init__()
        if outer < 2 or outer % 2 or encoder < 2 or encoder % 2 or inner < 1:
            raise ValueError(
                "outer and encoder must be even and at least 2, inner at least 1, got"
                f" {outer}, {encoder} and {inner}."
            )
        if vocabulary < 2 or channels < 1:
            raise ValueError(
                f"vocabulary must be at least 2 and channels 1, got {vocabulary} and {channels}."
            )
        self.size, self.vocabulary, self.channels = size, vocabulary, channels
        block = partial(axial_block, size, dim, heads)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = Positions(size, dim)
        self.outer = nn.Sequential(*(block(ROWS - i % 2, causal=i % 2 == 1) for i in range(outer)))
        self.inner = nn.Sequential(*(Block(dim, heads, 0.0, causal=True) for _ in range(inner)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary)
        if channels > 1:
            self.earlier = nn.Parameter(0.02 * torch.randn(channels, vocabulary, dim))
            self.current = nn.Parameter(0.02 * torch.randn(channels, 1, 1, dim))
            self.encoder = nn.Sequential(*(block(ROWS - i % 2) for i in range(encoder)))
            self.encoder_positions = Positions(size, dim)

    def forward(
        self, x: Int[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width vocabulary"]:
        """Logits of every pixel, given those before it."""
        x = self._check(x)
        h, condition = self.embedding(x), self.condition(x)
        flat = h.flatten(0, 1), condition.flatten(0, 1)
        return self.within_rows(flat[0], self.above(*flat), flat[1]).unflatten(0, x.shape[:2])

    def log_prob(self, x: Int[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """log p(x), in nats."""
        chosen = self(x).log_softmax(-1).gather(-1, x.long()[..., None])
        return chosen.flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self, n: int = 1, *, fast: bool = True, generator: Generator | None = None
    ) -> Int[Tensor, "n channels height width"]:
        """Images drawn pixel by pixel. Fast: the outer decoder runs once for each row, and the inner one on
        that row alone; the images are the same."""
        weight = self.head.weight
        height, width = self.size
        shape = n, self.channels, height, width
        noise = draw_gumbel((*shape, self.vocabulary), weight, generator)
        x = torch.zeros(shape, dtype=torch.long, device=weight.device)
        for c in range(self.channels):
            condition = self.condition(x)[:, c]
            for i in range(height):
                row = slice(i, i + 1)
                above = self.above(self.embedding(x[:, c]), condition)[:, row] if fast else None
                for j in range(width):
                    if above is None:
                        logits = self(x)[:, c, i, j]
                    else:
                        left = self.embedding(x[:, c, row])
                        logits = self.within_rows(left, above, condition[:, row], row)[:, 0, j]
                    x[:, c, i, j] = (logits + noise[:, c, i, j]).argmax(-1)
        return x

    def condition(
        self, x: Int[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width dim"]:
        """What each channel is told of those before it."""
        if self.channels == 1:
            return self.head.weight.new_zeros(*x.shape, self.head.in_features)
        read = torch.stack([e[x[:, c]] for c, e in enumerate(self.earlier)], 1)
        before = F.pad(read[:, :-1].cumsum(1), (0, 0, 0, 0, 0, 0, 1, 0))
        before = before + self.current + self.encoder_positions()
        return self.encoder(before.flatten(0, 1).flatten(1, 2)).view(before.shape)

    def above(
        self, h: Float[Tensor, "batch height width dim"], condition: Float[Tensor, "batch height width dim"]
    ) -> Float[Tensor, "batch height width dim"]:
        """What each pixel is told of the rows above it."""
        u = self.outer((h + self.positions() + condition).flatten(1, 2)).view(h.shape)
        return F.pad(u, (0, 0, 0, 0, 1, 0))[:, :-1]

    def within_rows(
        self,
        h: Float[Tensor, "batch rows width dim"],
        above: Float[Tensor, "batch rows width dim"],
        condition: Float[Tensor, "batch rows width dim"],
        rows: slice = slice(None),
    ) -> Float[Tensor, "batch rows width vocabulary"]:
        """Logits of some rows, whose embeddings are h."""
        right = F.pad(h, (0, 0, 1, 0))[:, :, :-1]
        read = right + above + self.positions()[rows] + condition
        return self.head(self.norm(self.inner(read.flatten(0, 1)))).view(*h.shape[:3], self.vocabulary)

    def _check(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (self.channels, *self.size) or len(x) == 0:
            expected = ", ".join(map(str, (self.channels, *self.size)))
            raise ValueError(f"images must have shape (batch, {expected}), got {tuple(x.shape)}.")
        if x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(f"images must hold whole numbers, got {x.dtype}.")
        if values_visible(x) and not 0 <= int(x.min()) <= int(x.max()) < self.vocabulary:
            raise ValueError(
                f"images must lie in [0, {self.vocabulary}), got {int(x.min())} to {int(x.max())}."
            )
        return x.long()


class Positions(nn.Module):
    """One learned position for each row plus one for each column, (height, width, dim)."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(size, dim)) for size in grid)

    def forward(self) -> Float[Tensor, "height width dim"]:
        return self.rows[:, None] + self.columns


def axial_block(
    grid: tuple[int, int], dim: int, heads: int, axis: int, causal: bool = False, dropout: float = 0.0
) -> Block:
    """A transformer block along one axis."""
    attention = partial(AxialAttention, axis=axis, causal=causal)
    place: dict[str, Any] = {"grid": grid}
    return Block(dim, heads, dropout, layers=Layers(attention=attention), **place)
