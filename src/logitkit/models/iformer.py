"""The Inception transformer: stages of Inception mixers in which attention gets more channels with depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers import InceptionMixer, ramp
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.models.vit import Block, Layers
from logitkit.registry import Choice, part


@part(
    "iformer",
    "models",
    title="Inception Transformer",
    paper="arXiv:2205.12956",
    number=152,
    companion_of="iformer",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"patch": Choice(1, 2)},
)
class IFormer(Backbone):
    """Inception transformer: a backbone for images in which fine and coarse features both matter.

    Equation: z <- z + mixer(LN z), z <- z + MLP(LN z) in every block, see `InceptionMixer`. Stages begin with
    a convolution, batch normalisation and learned positions: the first with stride `patch`, the others 3x3
    with stride 2. Features are the mean of LN of the last.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, features), pooled to (batch,
    features), unitless.

    Defaults: two small stages, for images of 8x8 to 32x32 pixels; the patch is the smallest power of two that
    leaves at most 256 tokens. attn_heads names those of every block of every stage; None lets their share
    rise from 1/3 to 11/12, see `ramp`. The paper's small model has dims=(96, 192, 320, 384), depths=(3, 3, 9,
    3), heads=(3, 6, 10, 12), attn_heads 1, 3, 7 then 9, and 11, pools=(2, 2, 1, 1), and beside that a stem of
    two convolutions of stride 2 and LayerScale in the last two stages.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), stages of different number,
    heads that do not divide their dim, an input of another shape or dtype, an empty batch or NaN.

    Source: Si et al., NeurIPS 2022, arXiv:2205.12956, section 3.2 and table 1; the authors'
    inception_transformer.py.

    Not for: batches of one in training, which batch normalisation cannot use on a single token.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dims: Sequence[int] = (32, 64),
        depths: Sequence[int] = (1, 2),
        heads: Sequence[int] = (4, 8),
        attn_heads: Sequence[Sequence[int]] | None = None,
        pools: Sequence[int] = (2, 1),
        patch: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "iformer")
        if attn_heads is None:
            shares = ramp(len(heads))
            attn_heads = [[max(1, round(h * s))] * n for h, s, n in zip(heads, shares, depths, strict=False)]
        sizes = dims, depths, heads, attn_heads, pools
        if len({len(size) for size in sizes}) > 1 or [len(a) for a in attn_heads] != list(depths):
            raise ValueError(
                f"dims, depths, heads, attn_heads and pools must name the same stages, got {sizes}."
            )
        patch, grid = patches_of(height, width, patch, most=256)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.stages, self.positions = nn.ModuleList(), nn.ParameterList()
        for stage, (dim, count, low, pool) in enumerate(zip(dims, heads, attn_heads, pools, strict=True)):
            if stage == 0:
                down = nn.Conv2d(channels, dim, 2 * patch - 1, stride=patch, padding=patch // 2)
            else:
                down = nn.Conv2d(channels, dim, 3, stride=2, padding=1)
                grid = -(-grid[0] // 2), -(-grid[1] // 2)
            channels = dim
            blocks = nn.Sequential(*(mixer_block(dim, grid, count, n, pool, dropout) for n in low))
            self.stages.append(nn.ModuleDict({"down": down, "norm": nn.BatchNorm2d(dim), "blocks": blocks}))
            self.positions.append(nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], dim)))
        self.norm = nn.LayerNorm(channels)
        self.out_features = channels

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens features"]:
        map = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = map
        for stage, position in zip(self.stages, self.positions, strict=True):
            map = stage["norm"](stage["down"](map))  # type: ignore[index]
            tokens = stage["blocks"](map.flatten(2).mT + position)  # type: ignore[index]
            map = tokens.mT.unflatten(2, map.shape[2:])
        return self.norm(tokens)

    def pool(self, map: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch features"]:
        return map.mean(dim=1)


def mixer_block(
    dim: int, grid: tuple[int, int], heads: int, attn_heads: int, pool: int, dropout: float
) -> Block:
    """A transformer block with an Inception mixer in the place of attention."""
    mixer = partial(InceptionMixer, heads=heads, attn_heads=attn_heads, pool=pool)
    place: dict[str, Any] = {"grid": grid}
    return Block(dim, heads, dropout, layers=Layers(mixer=mixer), **place)
