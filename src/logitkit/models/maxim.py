"""MAXIM: images from images by gated mixing within blocks and over a grid, in a U-Net; and its encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers import SqueezeExcite
from logitkit.layers.base import ChannelNorm, check_maps, check_whole
from logitkit.models.base import Backbone, check_images, check_inputs
from logitkit.ops.grid import lattices, merge_lattices, merge_windows, windows
from logitkit.registry import Choice, part

Size = tuple[int, int]


class AxisLinear(nn.Module):
    """A linear map over the size^2 pixels of every block, or with `dilated` over those of every lattice of
    pixels that lie evenly over the whole map; channels do not mix.

    Shapes: x (batch, h, w, channels), h and w multiples of size -> same.
    """

    def __init__(self, size: int, dilated: bool) -> None:
        super().__init__()
        self.size, self.dilated = size, dilated
        self.linear = dense(size**2, size**2)

    def forward(self, x: Float[Tensor, "batch h w channels"]) -> Float[Tensor, "batch h w channels"]:
        cut, merge = (lattices, merge_lattices) if self.dilated else (windows, merge_windows)
        size, whole = (self.size, self.size), (x.shape[1], x.shape[2])
        return merge(self.linear(cut(x, size).mT).mT, size, whole)


class GMLP(nn.Module):
    """x + W_2 (u (A LN(v) + 1)) with u, v the halves of gelu(W_1 LN(x)) and A as `AxisLinear`.

    Shapes: x (batch, h, w, channels) -> same.
    """

    def __init__(self, channels: int, size: int, dilated: bool) -> None:
        super().__init__()
        self.norm, self.gate_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.proj_in, self.proj_out = dense(channels, 2 * channels), dense(channels, channels)
        self.mix = AxisLinear(size, dilated)

    def forward(self, x: Float[Tensor, "batch h w channels"]) -> Float[Tensor, "batch h w channels"]:
        u, v = F.gelu(self.proj_in(self.norm(x))).chunk(2, dim=-1)
        return x + self.proj_out(u * (self.mix(self.gate_norm(v)) + 1))


class MultiAxisGMLP(nn.Module):
    """x + W_2 [grid gMLP(u), block gMLP(v)] with u, v the halves of gelu(W_1 LN(x)): at once far and near.

    Shapes: x (batch, channels, h, w), h and w multiples of block and lattice -> same.
    """

    def __init__(self, channels: int, block: int, lattice: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj_in, self.proj_out = dense(channels, 2 * channels), dense(2 * channels, channels)
        self.far, self.near = GMLP(channels, lattice, True), GMLP(channels, block, False)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        u, v = F.gelu(self.proj_in(self.norm(x.movedim(1, -1)))).chunk(2, dim=-1)
        mixed = torch.cat([self.far(u), self.near(v)], dim=-1)
        return x + self.proj_out(mixed).movedim(-1, 1)


class AxisGate(nn.Module):
    """W_2 [A u, B v] with u, v the halves of gelu(W_1 LN(x)), A over lattices and B over blocks, whose biases
    start at 1.

    Shapes: x (batch, h, w, channels) -> same.
    """

    def __init__(self, channels: int, block: int, lattice: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj_in, self.proj_out = dense(channels, 2 * channels), dense(2 * channels, channels)
        self.far, self.near = AxisLinear(lattice, True), AxisLinear(block, False)
        for axis in (self.far, self.near):
            nn.init.ones_(axis.linear.bias)

    def forward(self, x: Float[Tensor, "batch h w channels"]) -> Float[Tensor, "batch h w channels"]:
        u, v = F.gelu(self.proj_in(self.norm(x))).chunk(2, dim=-1)
        return self.proj_out(torch.cat([self.far(u), self.near(v)], dim=-1))


class CrossGating(nn.Module):
    """Two signals gate each other: with x_1 = gelu(W LN(x)) and y_1 alike,
    y' = y + W (y_1 gate(x_1)), x' = x + y' + W (x_1 gate(y_1)), gate as `AxisGate`.

    x first passes a 1x1 convolution, and y is doubled in size with `upsample`, then passes one too.

    Shapes: x (batch, x_channels, h, w), y (batch, y_channels, h, w), or half of that with `upsample`
    -> x', y' (batch, channels, h, w).
    """

    def __init__(
        self,
        x_channels: int,
        y_channels: int,
        channels: int,
        block: int,
        lattice: int,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(y_channels, channels, 2, stride=2) if upsample else nn.Identity()
        self.conv_x = nn.Conv2d(x_channels, channels, 1)
        self.conv_y = nn.Conv2d(channels if upsample else y_channels, channels, 1)
        self.norm_x, self.norm_y = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.in_x, self.in_y = dense(channels, channels), dense(channels, channels)
        self.out_x, self.out_y = dense(channels, channels), dense(channels, channels)
        self.gate_x, self.gate_y = AxisGate(channels, block, lattice), AxisGate(channels, block, lattice)

    def forward(
        self, x: Float[Tensor, "batch cx h w"], y: Float[Tensor, "batch cy h2 w2"]
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        x, y = (each.movedim(1, -1) for each in (self.conv_x(x), self.conv_y(self.up(y))))
        inner_x, inner_y = F.gelu(self.in_x(self.norm_x(x))), F.gelu(self.in_y(self.norm_y(y)))
        gated = self.out_x(inner_x * self.gate_y(inner_y))
        y = y + self.out_y(inner_y * self.gate_x(inner_x))
        x = x + y + gated
        return x.movedim(-1, 1), y.movedim(-1, 1)


class SAM(nn.Module):
    """The end of a stage: an image made of the features, and the features attended to by it:
    image = W x + input, x' = x + (V x) sigmoid(U image). The last stage of all needs no x'.

    Shapes: x (batch, features, h, w), input (batch, channels, h, w) -> x' as x or None, image as input.
    """

    def __init__(self, features: int, channels: int, last: bool = False) -> None:
        super().__init__()
        self.image = conv3(features, channels)
        self.value = None if last else conv3(features, features)
        self.gate = None if last else conv3(channels, features)

    def forward(
        self, x: Float[Tensor, "batch features h w"], input: Float[Tensor, "batch channels h w"]
    ) -> tuple[Float[Tensor, "batch features h w"] | None, Float[Tensor, "batch channels h w"]]:
        image = self.image(x) + input
        if self.value is None or self.gate is None:
            return None, image
        return x + self.value(x) * self.gate(image).sigmoid(), image


class Read(nn.Module):
    """The start of a stage: features of an image, and in later stages what the one before attended to, by
    which they are gated."""

    def __init__(self, channels: int, features: int, block: int, lattice: int, later: bool) -> None:
        super().__init__()
        self.conv = conv3(channels, features)
        self.fuse = CrossGating(features, features, features, block, lattice) if later else None

    def forward(self, image: Tensor, attended: Tensor | None) -> Tensor:
        x = self.conv(image)
        return x if self.fuse is None else self.fuse(x, attended)[0]


class Level(nn.Module):
    """u + mix(u), u a 1x1 convolution of x; mix is `groups` times a multi-axis block and channel attention,
    x + se(conv(leaky relu(conv(LN(x))))), or with `narrow`, as in the bottleneck, x + se(mlp(LN(x)))."""

    def __init__(
        self, x_channels: int, channels: int, block: int, lattice: int, groups: int = 1, narrow: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(x_channels, channels, 1)
        attend = narrow_attention if narrow else conv_attention
        mixers = [
            (MultiAxisGMLP(channels, block, lattice), Residual(attend(channels))) for _ in range(groups)
        ]
        self.mix = nn.Sequential(*(layer for pair in mixers for layer in pair))

    def forward(self, x: Float[Tensor, "batch cx h w"]) -> Float[Tensor, "batch channels h w"]:
        x = self.conv(x)
        return x + self.mix(x)


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def conv_attention(channels: int) -> nn.Sequential:
    convs = conv3(channels, channels), nn.LeakyReLU(0.2), conv3(channels, channels)
    return nn.Sequential(ChannelNorm(channels), *convs, SqueezeExcite(channels, max(1, channels // 4)))


def narrow_attention(channels: int) -> nn.Sequential:
    mlp = nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 1)
    return nn.Sequential(ChannelNorm(channels), *mlp, SqueezeExcite(channels, max(1, channels // 4)))


class Encoder(nn.Module):
    """`depth` levels, each twice as wide and half as large as the last, and a bottleneck. Level i also takes
    what `extra[i]` gives, if anything, and passes what it made through `fuse` before it goes on."""

    def __init__(
        self,
        features: int,
        depth: int,
        block: int,
        lattice: int,
        groups: int,
        scales: int,
        later: bool = False,
    ) -> None:
        super().__init__()
        widths = [features * 2**i for i in range(depth)]
        self.levels, self.downs, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            from_above = widths[max(i - 1, 0)] if i else 0
            self.levels.append(
                Level(from_above + (width if i < scales else 0), width, block, lattice, groups)
            )
            self.downs.append(nn.Conv2d(width, width, 4, stride=2, padding=1))
            if later:
                self.gates.append(CrossGating(width, width, width, block, lattice))
        self.bottleneck = Level(widths[-1], widths[-1], block, lattice, groups, narrow=True)

    def forward(self, inputs: Sequence[Tensor], before: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck's map and those of the levels, of the images' features at each scale, and of what
        the stage before knew at each level."""
        made: list[Tensor] = []
        x: Tensor | None = None
        for i, (level, down) in enumerate(zip(self.levels, self.downs, strict=True)):
            x = torch.cat([each for each in (x, *inputs[i : i + 1]) if each is not None], dim=1)
            x = level(x)
            if before:
                x, _ = self.gates[i](x, before[i])
            made.append(x)
            x = down(x)
        return self.bottleneck(x), made


class Gather(nn.Module):
    """Maps of all levels in the size of one of them, each through a 1x1 convolution, side by side."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(other, width, 1) for other in widths)

    def forward(self, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        size = list(like.shape[2:])
        resized = [
            m if list(m.shape[2:]) == size else F.interpolate(m, size, mode="bilinear", antialias=True)
            for m in maps
        ]
        return torch.cat([conv(m) for conv, m in zip(self.convs, resized, strict=True)], dim=1)


class Stage(nn.Module):
    """One U-Net: encoder, skips in which encoder and bottleneck gate each other, decoder."""

    def __init__(
        self, features: int, depth: int, block: int, lattice: int, groups: int, scales: int, later: bool
    ) -> None:
        super().__init__()
        widths = [features * 2**i for i in range(depth)]
        self.encoder = Encoder(features, depth, block, lattice, groups, scales, later)
        self.signals, self.crossings = nn.ModuleList(), nn.ModuleList()
        self.skips, self.ups, self.decoders = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            below = widths[min(i + 1, depth - 1)]
            self.signals.append(Gather(widths, width))
            self.skips.append(Gather(widths, width))
            self.crossings.append(CrossGating(depth * width, below, width, block, lattice, upsample=True))
            self.ups.append(nn.ConvTranspose2d(below, width, 2, stride=2))
            self.decoders.append(Level((1 + depth) * width, width, block, lattice, groups))

    def forward(
        self, inputs: Sequence[Tensor], before: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of the levels on the way down and on the way up, largest first."""
        x, down = self.encoder(inputs, before)
        y, gated, up = x, list(down), list(down)
        for i in reversed(range(len(down))):
            signal = self.signals[i](down, down[i])
            gated[i], y = self.crossings[i](signal, y)
        for i in reversed(range(len(down))):
            skips = self.skips[i](gated, gated[i])
            up[i] = x = self.decoders[i](torch.cat([self.ups[i](x), skips], dim=1))
        return down, up


class MAXIM(nn.Module):
    """Images restored: denoised, sharpened, brightened; by one or more U-Nets of multi-axis blocks.

    channels: of the images. stages: U-Nets one after the other. depth, features: levels of each, and channels
    of the first. block, lattice: pixels a side of blocks and lattices. groups: blocks per level. scales: at
    how many sizes, each half of the last, the image is read and restored.

    Shapes: x (batch, channels, h, w) -> same. An image that block, lattice and 2^depth do not divide is
    padded with its reflection. `outputs(x)` gives the images of all stages and scales, for `maxim_loss`.
    Raises: ValueError for sizes below 1, more scales than levels, inputs of another shape or dtype, or none.
    """

    def __init__(
        self,
        channels: int = 3,
        stages: int = 1,
        depth: int = 3,
        features: int = 16,
        block: int = 4,
        lattice: int = 4,
        groups: int = 1,
        scales: int = 1,
    ) -> None:
        super().__init__()
        check_whole(channels=channels, stages=stages, depth=depth, features=features, groups=groups)
        check_whole(block=block, lattice=lattice, scales=scales)
        if scales > depth:
            raise ValueError(f"scales must be at most the depth, got {scales} and {depth}.")
        self.channels, self.scales = channels, scales
        self.multiple = math.lcm(block, lattice) * 2**depth
        widths = [features * 2**i for i in range(scales)]
        self.stages, self.reads, self.writes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for k in range(stages):
            self.stages.append(Stage(features, depth, block, lattice, groups, scales, later=k > 0))
            reads = [Read(channels, w, block, lattice, later=k > 0) for w in widths]
            self.reads.append(nn.ModuleList(reads))
            self.writes.append(nn.ModuleList(SAM(w, channels, last=k + 1 == stages) for w in widths))

    def outputs(self, x: Float[Tensor, "batch channels h w"]) -> list[list[Tensor]]:
        """The images of each stage, at full size, half of it and so on; cropped to the size of x."""
        x = check_maps(x, self.channels)
        height, width = x.shape[2:]
        images = scaled(padded(x, self.multiple), self.scales)
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(self.scales)]
        made: list[list[Tensor]] = []
        before: list[Tensor] = []
        attended: list[Tensor | None] = [None] * self.scales
        parts: Any = zip(self.stages, self.reads, self.writes, strict=True)
        for stage, reads, writes in parts:
            inputs = [read(image, a) for read, image, a in zip(reads, images, attended, strict=True)]
            down, up = stage(inputs, before)
            before = [a + b for a, b in zip(down, up, strict=True)]
            pairs = [write(u, image) for write, u, image in zip(writes, up, images, strict=False)]
            attended = [a for a, _ in pairs]
            made.append([image[..., :h, :w] for (_, image), (h, w) in zip(pairs, sizes, strict=True)])
        return made

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return self.outputs(x)[-1][0]


def maxim_loss(
    outputs: Sequence[Sequence[Tensor]], target: Float[Tensor, "batch channels h w"], frequency: float = 0.1
) -> Float[Tensor, ""]:
    """The sum over stages and scales of the mean of sqrt(d^2 + 1e-6), d = output - target, and of `frequency`
    times the mean modulus of d's Fourier transform over the root of the number of pixels."""
    total = target.new_zeros(())
    for stage in outputs:
        for output, wanted in zip(stage, scaled(target, len(stage)), strict=True):
            d = output - wanted
            total = total + (d.square() + 1e-6).sqrt().mean()
            total = total + frequency * torch.fft.rfft2(d, norm="ortho").abs().mean()
    return total


@part(
    "maxim",
    "models",
    title="MAXIM: Multi-Axis MLP for Image Processing",
    paper="arXiv:2201.02973",
    number=140,
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"features": Choice(8, 16, 24), "groups": Choice(1, 2)},
)
class MAXIMEncoder(Backbone):
    """The encoder of MAXIM as a backbone: blocks that mix pixels near and far by gated linear maps, at the
    cost of as many operations per pixel whatever the size. For restored images there is `MAXIM`.

    Equation: at each level u = W x, then u plus [multi-axis gMLP, channel attention](u), see `MultiAxisGMLP`
    and `Level`; a 4x4 convolution of stride 2 leads to the next; a last such level is the bottleneck.
    Features = the mean of its map over positions.

    Shapes: x (batch, channels, height, width) -> feature map (batch, d, h, w), d = features * 2^(depth - 1),
    pooled to (batch, d), unitless.

    Defaults: features 16, one group, blocks and lattices of 4x4, and as many levels as leave 4 pixels on the
    shorter side, at most 3; the authors restore images of 256 pixels with 32 or 64 features, depth 3,
    two groups, and blocks and lattices of 16 in the first two levels and 8 below. Linear maps start at
    N(0, 0.02^2). Images that do not divide are padded with their reflection.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), sizes below 1, an input of
    another shape or dtype, an empty batch or NaN.

    Source: Tu et al., CVPR 2022, arXiv:2201.02973, sections 3.1 to 3.4; the authors' `maxim.py`.

    Not for: speed on small images, where a few convolutions do.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        features: int = 16,
        depth: int | None = None,
        block: int = 4,
        lattice: int = 4,
        groups: int = 1,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "maxim")
        if depth is None:
            depth = min(3, max(1, int(math.log2(min(height, width) / 4))))
        check_whole(features=features, depth=depth, block=block, lattice=lattice, groups=groups)
        self.multiple = math.lcm(block, lattice) * 2**depth
        self.conv = conv3(channels, features)
        self.encoder = Encoder(features, depth, block, lattice, groups, scales=1)
        self.out_features = features * 2 ** (depth - 1)

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d h w"]:
        x = padded(check_inputs(x, self.input_shape), self.multiple)
        return self.encoder([self.conv(x)])[0]

    def pool(self, map: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d"]:
        return map.mean(dim=(2, 3))


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at N(0, 0.02^2), with a bias of 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def padded(x: Tensor, multiple: int) -> Tensor:
    """The image and, to the right and below, its reflection up to a multiple; its border where it is too
    small for that."""
    below, right = (-side % multiple for side in x.shape[2:])
    mode = "reflect" if below < x.shape[2] and right < x.shape[3] else "replicate"
    return F.pad(x, (0, right, 0, below), mode=mode) if below or right else x


def scaled(x: Tensor, scales: int) -> list[Tensor]:
    """The image at full size, half of it and so on."""
    sizes = [[-(-side // 2**i) for side in x.shape[2:]] for i in range(scales)]
    return [x, *(F.interpolate(x, size, mode="nearest-exact") for size in sizes[1:])]
