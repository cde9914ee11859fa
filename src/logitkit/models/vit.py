"""The vision transformer, small: the reference attention backbone for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import SoftmaxAttention
from logitkit.models.base import Backbone, check_images, check_inputs, fitted_in, patches_of
from logitkit.registry import Choice, Real, Whole, part

Make = Callable[..., nn.Module]


def feed_forward(dim: int, hidden: int, linear: Make = nn.Linear) -> nn.Module:
    """The usual feed-forward part of a block."""
    return nn.Sequential(linear(dim, hidden), nn.GELU(), linear(hidden, dim))


class Layers(NamedTuple):
    """What a block is made of.

    attention: called with (dim, heads), a part of `attention`. norm: with (dim,). mlp: with (dim, hidden).
    mixer: with (dim, grid), tokens to tokens, in the place of attention. Each also gets by name what it asks
    for of where it is: `grid`, (height, width) in tokens; `max_len` and `n_ref`, the number of tokens;
    `layer`, the number of the block. linear: with (in_features, out_features), the layers of `feed_forward`
    and attention's projections; an mlp may ask for `linear` too.
    """

    attention: Make = SoftmaxAttention
    norm: Make = nn.LayerNorm
    mlp: Make = feed_forward
    mixer: Make | None = None
    linear: Make = nn.Linear


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). With `causal` no token sees
    those after it. `place` is what layers may ask for by name."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        causal: bool = False,
        layers: Layers | None = None,
        **place: Any,
    ) -> None:
        super().__init__()
        self.causal = causal
        layers = layers or Layers()
        self.norm1, self.norm2 = layers.norm(dim), layers.norm(dim)
        self.mixes = layers.mixer is not None
        if layers.mixer is None:
            self.attention = fitted_in(layers.attention, dim, heads, **place)
            if layers.linear is not nn.Linear:
                project_with(layers.linear, self.attention)
        else:
            self.attention = fitted_in(layers.mixer, dim, **place)
        if causal and "causal" not in getattr(self.attention, "takes", {"causal"}):
            raise ValueError(f"{type(self.attention).__name__} sees all tokens: it cannot be causal.")
        self.mlp = fitted_in(layers.mlp, dim, 4 * dim, linear=layers.linear, **place)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        tokens = self.norm1(x)
        mixed = self.attention(tokens) if self.mixes else self.attention(tokens, is_causal=self.causal)[0]
        x = x + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.norm2(x)))


def project_with(linear: Make, attention: nn.Module) -> None:
    """Put other layers in the place of the projections `in_proj` and `out_proj`, where they are nn.Linear."""
    for name in ("in_proj", "out_proj"):
        old = getattr(attention, name, None)
        if isinstance(old, nn.Linear):
            setattr(attention, name, linear(old.in_features, old.out_features))


class GridBlock(nn.Module):
    """A block of maps (batch, dim, h, w) -> same, on the tokens of a grid in reading order."""

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        return self.block(x.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)


@part(
    "vit",
    "models",
    title="Small vision transformer",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"depth": Whole(2, 6), "dim": Choice(48, 64, 96), "dropout": Real(0.0, 0.2)},
)
class ViT(Backbone):
    """A small vision transformer: the attention backbone to compare `cnn` with, or to try attention parts on.

    Equation: z_0 = patches(x) E + P; z'_l = z_{l-1} + MSA(LN(z_{l-1})); z_l = z'_l + MLP(LN(z'_l)); feature
    map = LN(z_L), features = its mean over tokens.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, dim), pooled to (batch, dim),
    unitless.

    Defaults: depth 4, dim 64, 4 heads, no dropout, softmax attention, LayerNorm and a GELU network in every
    block; `attention`, `norm`, `mlp`, `mixer` and `linear` put other layers there, see `Layers`. `block`,
    called with (dim,), takes the place of whole blocks, on maps (batch, dim, height, width) of tokens. The
    patch is the smallest power of two that leaves at most 16 tokens (2x2 at 8x8 pixels, 8x8 at 32x32, the
    paper's 16x16 at 64x64); an image it does not divide is padded with zeros. Mean pooling instead of the
    paper's class token, as its appendix D.3 finds equal.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a `dim` that `heads` does
    not divide, a depth below 1, dropout outside [0, 1), a `block` beside other layers of blocks, an input of
    another shape or dtype, an empty batch or NaN.

    Source: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929, equations 1-4.

    Not for: a few thousand images without pretraining, where `cnn` is ahead; vectors, for which there is
    `mlp`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        depth: int = 4,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        patch: int | None = None,
        *,
        attention: Make = SoftmaxAttention,
        norm: Make = nn.LayerNorm,
        mlp: Make = feed_forward,
        mixer: Make | None = None,
        linear: Make = nn.Linear,
        block: Make | None = None,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "vit")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads, got dim {dim} and heads {heads}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        patch, grid = patches_of(height, width, patch)
        tokens = grid[0] * grid[1]
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, dim))
        layers = Layers(attention, norm, mlp, mixer, linear)
        place: dict[str, Any] = {"grid": grid, "max_len": tokens, "n_ref": tokens}
        blocks: list[nn.Module]
        if block is None:
            blocks = [Block(dim, heads, dropout, layers=layers, layer=i, **place) for i in range(depth)]
        elif layers == Layers(norm=norm):
            blocks = [GridBlock(fitted_in(block, dim, layer=i, **place), grid) for i in range(depth)]
        else:
            raise ValueError("a block leaves no place for an attention, mlp, mixer or linear, and got one.")
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(dim)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        padded = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = self.patches(padded).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens + self.position))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map.mean(dim=1)
