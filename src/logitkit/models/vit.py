"""The vision transformer, small: the reference attention backbone for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.models.base import Backbone, check_inputs
from logitkit.registry import Choice, Real, Whole, part


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). With `causal` no token sees
    those after it."""

    def __init__(self, dim: int, heads: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.mlp(self.norm2(x)))


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

    Defaults: depth 4, dim 64, 4 heads, no dropout. The patch is the smallest power of two that leaves at most
    16 tokens (2x2 at 8x8 pixels, 8x8 at 32x32, the paper's 16x16 at 64x64); an image it does not divide is
    padded with zeros. Mean pooling instead of the paper's class token, as its appendix D.3 finds equal.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a `dim` that `heads` does
    not divide, a depth below 1, dropout outside [0, 1), an input of another shape or dtype, an empty batch or
    NaN.

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
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 3:
            raise ValueError(
                f"vit reads images of shape (channels, height, width), got input_shape {self.input_shape};"
                " mlp and linear read any shape."
            )
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads, got dim {dim} and heads {heads}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        channels, height, width = self.input_shape
        patch = 1
        while -(-height // patch) * -(-width // patch) > 16:
            patch *= 2
        tokens = -(-height // patch) * -(-width // patch)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        padded = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = self.patches(padded).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens + self.position))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map.mean(dim=1)
