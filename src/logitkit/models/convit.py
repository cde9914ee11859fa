"""ConViT: a vision transformer whose first layers start as convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import GatedPositionalAttention
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.models.vit import Block, Layers
from logitkit.registry import Choice, Whole, part


@part(
    "convit",
    "models",
    title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
    paper="arXiv:2103.10697",
    number=198,
    companion_of="convit",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"gpsa_layers": Whole(1, 6), "dim": Choice(32, 64, 96)},
)
class ConViT(Backbone):
    """ConViT: a vision transformer for few images, which starts as a convolutional network of attention.

    Equation: z <- z + GPSA(LN z), z <- z + MLP(LN z) for the patches; then a class token joins them, and the
    last blocks are those of a vision transformer. Features are the class token of LN z.

    Shapes: x (batch, channels, height, width) -> feature map (batch, 1 + tokens, dim), class token first;
    pooled to (batch, dim), unitless.

    Defaults: 3 layers of GPSA and one of attention, dim 64, 4 heads; patches as `vit`. The paper has 10 and 2
    layers, and 4, 9 or 16 heads of 48.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a `dim` that `heads` does
    not divide, no layer of either kind, an input of another shape or dtype, an empty batch or NaN.

    Source: d'Ascoli et al., ICML 2021, arXiv:2103.10697, section 3 and table 2.

    Not for: inputs without a grid.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        gpsa_layers: int = 3,
        sa_layers: int = 1,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        patch: int | None = None,
        locality: float = 1.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "convit")
        if gpsa_layers < 1 or sa_layers < 1:
            raise ValueError(
                f"gpsa_layers and sa_layers must be at least 1, got {gpsa_layers} and {sa_layers}."
            )
        patch, grid = patches_of(height, width, patch)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], dim))
        self.class_token = nn.Parameter(0.02 * torch.randn(dim))
        local = Layers(attention=partial(GatedPositionalAttention, locality=locality))
        place: dict[str, Any] = {"grid": grid}
        self.local = nn.Sequential(
            *(Block(dim, heads, dropout, layers=local, **place) for _ in range(gpsa_layers))
        )
        self.blocks = nn.Sequential(*(Block(dim, heads, dropout) for _ in range(sa_layers)))
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        padded = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = self.local(self.patches(padded).flatten(2).mT + self.position)
        first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)
        return self.norm(self.blocks(torch.cat([first, tokens], 1)))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map[:, 0]
