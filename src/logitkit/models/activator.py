"""Activator: a vision transformer with gated units in the place of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers import ActivatorBlock
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.registry import Choice, Real, Whole, part


@part(
    "activator",
    "models",
    title="Activator: GLU Activations as The Core Functions of a Vision Transformer",
    paper="arXiv:2405.15953",
    number=151,
    companion_of="activator",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"depth": Whole(2, 6), "dim": Choice(48, 64, 96), "dropout": Real(0.0, 0.5)},
)
class Activator(Backbone):
    """Patches that never see each other: what a vision transformer can do without attention. As released it
    is a bag of patches, which `position` tells where they are.

    Equation: z_0 = patches(x) E (+ P); z_l = block(z_{l-1}), see `layers.ActivatorBlock`; feature map = z_L,
    features = its mean over tokens.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, dim), pooled to (batch, dim),
    unitless.

    Defaults: depth 4 and hidden = 2 dim as the authors' CIFAR-10 network, which has dim 256 and dropout 0.5;
    here 64 and none. `ffn=False` is their second, smaller network. The patch is that of `vit`, and an image
    that it does not divide is padded with zeros.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), sizes below 1, dropout
    outside [0, 1), an input of another shape or dtype, an empty batch or NaN.

    Source: Abdullah Nazhat Abdullah and Tarkan Aydin, 2024, arXiv:2405.15953; the authors' `train.py`.

    Not for: tasks in which the relative position of parts matters, which the mean over tokens hides.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        depth: int = 4,
        dim: int = 64,
        hidden: int | None = None,
        dropout: float = 0.0,
        patch: int | None = None,
        *,
        ffn: bool = True,
        shared_norm: bool = True,
        position: bool = False,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "activator")
        patch, grid = patches_of(height, width, patch)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        hidden = 2 * dim if hidden is None else hidden
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], dim)) if position else None
        blocks = (ActivatorBlock(dim, hidden, dropout, ffn, shared_norm) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        padded = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = self.patches(padded).flatten(2).transpose(1, 2)
        return self.blocks(tokens if self.position is None else tokens + self.position)

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map.mean(dim=1)
