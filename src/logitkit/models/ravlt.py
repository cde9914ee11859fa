"""The rank-augmented vision linear transformer: linear attention where tokens are many, softmax where few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import RankAugmentedAttention, softmax_attention
from logitkit.layers.base import ChannelNorm, DropPath
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.registry import Choice, Real, part


class GatedSoftmaxAttention(RankAugmentedAttention):
    """As `RankAugmentedAttention`, with the weights of softmax, of queries and keys that are both turned."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return softmax_attention(self.turn(query), self.turn(key), value, mask)


class ConvFeedForward(nn.Module):
    """W_2 (u + conv(u)), u = gelu(W_1 x), with a depthwise 3x3 convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.conv(x))


class RAVLTBlock(nn.Module):
    """x + conv(x) with a depthwise 3x3 convolution, then x + s_1 attention(LN(x)), then x + s_2 FFN(LN(x)), s
    learned for each channel, from 1."""

    def __init__(
        self, dim: int, heads: int, hidden: int, grid: tuple[int, int], linear: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = ChannelNorm(dim, eps=1e-6), ChannelNorm(dim, eps=1e-6)
        make = RankAugmentedAttention if linear else GatedSoftmaxAttention
        self.attention = make(dim, heads, grid=grid)
        self.mlp = ConvFeedForward(dim, hidden)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(dim, 1, 1)) for _ in range(2))
        self.drop = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch dim h w"]) -> Float[Tensor, "batch dim h w"]:
        x = x + self.position(x)
        mixed = self.attention(self.norm1(x).flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])
        x = x + self.drop(self.scale1 * mixed)
        return x + self.drop(self.scale2 * self.mlp(self.norm2(x)))


@part(
    "ravlt",
    "models",
    title="Breaking the Low-Rank Dilemma of Linear Attention",
    paper="arXiv:2411.07635",
    number=155,
    companion_of="rala",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"dims": Choice((16, 32, 48, 64), (32, 64, 96, 128)), "drop_path": Real(0.0, 0.2)},
)
class RAVLT(Backbone):
    """Rank-augmented vision linear transformer: a backbone for images of many tokens, whose cost grows with
    their number where they are many.

    Equation: blocks of x + DWConv(x), x + s_1 A(LN x), x + s_2 FFN(LN x), with a depthwise convolution inside
    FFN; A is `attention.RankAugmentedAttention` in the first `linear` stages, and later the same with softmax
    weights. The stem is four convolutions with batch normalisation and GELU between them; a 3x3 convolution
    with batch normalisation leads from stage to stage. Feature map = silu(BN(W z)), features = its mean over
    positions.

    Shapes: x (batch, channels, height, width) -> feature map (batch, projection, h, w), pooled to
    (batch, projection), unitless.

    Defaults: four small stages for images of 8x8 to 32x32 pixels, the first two linear as in the release. The
    stem halves twice, as the authors', if that leaves more than 64 tokens, else once or not at all; the map
    is halved between stages only while more than 4 pixels are left on the shorter side. The authors' smallest
    is dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), heads=(1, 2, 4, 8), expand=3.5, projection=1024.
    `drop_path` is the rate of stochastic depth at the last block, from 0 at the first. Weights start at
    N(0, 0.02^2).

    Raises: ValueError for an `input_shape` that is not (channels, height, width), other than one depth and
    number of heads per stage, dims that are not a multiple of four times their heads, a `linear` outside
    [0, stages], an input of another shape or dtype, an empty batch or NaN.

    Source: Fan, Huang, He, CVPR 2025, arXiv:2411.07635; stem, stages and sizes as in the authors' RALA.py.

    Not for: batches of one or two images in training, whose batch statistics are noise; images of a few
    tokens, where attention to all of them costs as little.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dims: Sequence[int] = (16, 32, 48, 64),
        depths: Sequence[int] = (1, 1, 1, 1),
        heads: Sequence[int] = (1, 2, 3, 4),
        expand: float = 3.5,
        projection: int = 128,
        linear: int = 2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "ravlt")
        if not len(dims) == len(depths) == len(heads) >= 1 or min(depths) < 1:
            raise ValueError(
                "dims, depths and heads must name the same stages, each of at least one block, got"
                f" {tuple(dims)}, {tuple(depths)} and {tuple(heads)}."
            )
        if not 0 <= linear <= len(dims):
            raise ValueError(f"linear must be a number of stages, 0 to {len(dims)}, got {linear}.")
        patch, _ = patches_of(height, width, most=64)
        strides = 2 if patch > 1 else 1, 2 if patch > 2 else 1
        grid = height, width
        for stride in strides:
            grid = -(-grid[0] // stride), -(-grid[1] // stride)
        half = dims[0] // 2
        layers: list[nn.Module] = []
        for before, after, stride in (
            (channels, half, strides[0]), (half, half, 1), (half, half, 1), (half, dims[0], strides[1]),
        ):  # fmt: skip
            layers += [_down(before, after, stride), nn.GELU()]
        layers.pop()  # none after the last
        done, channels = 0, dims[0]
        for stage, (dim, depth, count) in enumerate(zip(dims, depths, heads, strict=True)):
            if stage:
                stride = 2 if min(grid) > 4 else 1
                layers.append(_down(channels, dim, stride))
                grid = -(-grid[0] // stride), -(-grid[1] // stride)
            channels = dim
            for _ in range(depth):
                rate = drop_path * done / max(sum(depths) - 1, 1)
                layers.append(RAVLTBlock(dim, count, int(expand * dim), grid, stage < linear, rate))
                done += 1
        layers += [nn.Conv2d(channels, projection, 1), nn.BatchNorm2d(projection), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.apply(_start)
        self.out_features = projection

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d h w"]:
        return self.layers(check_inputs(x, self.input_shape))

    def pool(self, map: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d"]:
        return map.mean(dim=(2, 3))


def _down(before: int, after: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution and batch normalisation."""
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after))


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
