"""SpaRTAN: a small convolutional network of near, far and wave mixing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from logitkit.layers import SpartanBlock
from logitkit.models.base import Backbone, check_images, check_inputs
from logitkit.registry import Choice, Real, part


@part(
    "spartan",
    "models",
    title="SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition",
    paper="arXiv:2507.10999",
    number=197,
    companion_of="spartan",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"dims": Choice((16, 32), (24, 48), (32, 64)), "drop_path": Real(0.0, 0.2)},
)
class SpaRTAN(Backbone):
    """A stem, stages of `layers.SpartanBlock`, their mean: for images where parameters count.

    Equation: two convolutions halve the image, each with normalisation and GELU; a 2x2 convolution halves the
    map between stages, with normalisation and SiLU. The first half of the stages has plain blocks, the second
    grouped ones. Features = the mean of the last map over positions.

    Shapes: x (batch, channels, height, width) -> feature map (batch, dims[-1], h, w), pooled to
    (batch, dims[-1]), unitless.

    Defaults: two stages of two blocks with dims 24 and 48 and expansions 4 and 2, for small images; the
    authors have four of 3, 3, 12 and 2 with dims from 32 to 256 and expansions 4, 4, 2, 2. The map is halved
    only while more than 4 pixels are left on the shorter side. `drop_path` is the rate of stochastic depth at
    the last block, from 0 at the first. Convolutions start at N(0, 2 / fan_out), biases at 0.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), other than one depth and
    expansion per stage, dims that 8 does not divide, an input of another shape or dtype, an empty batch or
    NaN.

    Source: Pay et al., IJCNN 2025, arXiv:2507.10999; the authors' `src/model/spartan.py`.

    Not for: speed, as depthwise convolutions and gathers are slow for the few multiplications they do.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dims: Sequence[int] = (24, 48),
        depths: Sequence[int] = (2, 2),
        expand: Sequence[int] = (4, 2),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "spartan")
        if not len(dims) == len(depths) == len(expand) > 0 or min(depths) < 1:
            raise ValueError(
                "dims, depths and expand must have an entry for each stage, and a stage at least one block,"
                f" got {dims}, {depths} and {expand}."
            )
        side, done = min(height, width), 0
        layers: list[nn.Module] = []

        def halving(out: int, kernel: int, act: nn.Module) -> nn.Sequential:
            nonlocal channels, side
            stride = 2 if side > 4 else 1
            kernel = kernel if stride == 2 or kernel == 3 else 1
            conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 3, bias=False)
            channels, side = out, -(-side // 2) if kernel == 3 and stride == 2 else side // stride
            return nn.Sequential(conv, nn.BatchNorm2d(out, eps=1e-6), act)

        layers += [halving(dims[0] // 2, 3, nn.GELU()), halving(dims[0], 3, nn.GELU())]
        for stage, (dim, depth, wide) in enumerate(zip(dims, depths, expand, strict=True)):
            if stage:
                layers.append(halving(dim, 2, nn.SiLU()))
            for _ in range(depth):
                rate = drop_path * done / sum(depths)
                layers.append(SpartanBlock(dim, wide, grouped=stage >= len(dims) // 2, drop_path=rate))
                done += 1
        self.layers = nn.Sequential(*layers)
        self.apply(_start)
        self.out_features = dims[-1]

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d h w"]:
        return self.layers(check_inputs(x, self.input_shape))

    def pool(self, map: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d"]:
        return map.mean(dim=(2, 3))


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        fan_out = layer.out_channels * math.prod(layer.kernel_size) // layer.groups
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
