"""SpaRTAN: two paths of convolutions that see near and far, and channels mixed as waves."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import DropPath, check_maps, check_whole
from logitkit.registry import Choice, part


def wave_product(
    x: Float[Tensor, "batch channels h w"], weight: Float[Tensor, "half 2"]
) -> Float[Tensor, "batch channels h w"]:
    """Channels 2k and 2k + 1 of every pixel as one complex number times w_k = weight[k, 0] + i weight[k, 1],
    in at least float32, also under autocast."""
    real, imaginary = x.unflatten(1, (-1, 2)).to(torch.promote_types(x.dtype, torch.float32)).unbind(2)
    a, b = weight.to(real.dtype)[:, :, None, None].unbind(1)
    return torch.stack([a * real - b * imaginary, a * imaginary + b * real], dim=2).flatten(1, 2)


class SqueezeExcite(nn.Module):
    """x times a gate for each channel, sigmoid(W_2 relu(W_1 mean(x))) with the mean over positions.

    Shapes: x (batch, channels, h, w) -> same.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return x * self.expand(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


def conv_norm_act(channels: int, groups: int, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution of the same size without bias, batch normalisation, GELU."""
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, eps=1e-6), nn.GELU())


class SpatialMixer(nn.Module):
    """W_2 [near(u), far(u)] with v = W_1 x of half the channels and u = v + g (v - mean over positions of v);
    near is a 3x3 convolution, far two with dilation 2 that reach 9x9 pixels, and each ends in squeeze and
    excitation. With `groups` = channels / 2 the convolutions are depthwise.

    Shapes: x (batch, channels, h, w), channels a multiple of 8 -> same.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        half = _eighths(channels) // 2
        self.channels = channels
        self.contrast = nn.Parameter(torch.full((half, 1, 1), 1e-5))
        self.proj_in = nn.Conv2d(channels, half, 1)
        plain = nn.Conv2d(half, half, 3, padding=2, dilation=2, groups=groups, bias=False)
        self.near = nn.Sequential(conv_norm_act(half, groups), SqueezeExcite(half, half // 4))
        self.far = nn.Sequential(plain, conv_norm_act(half, groups, 2), SqueezeExcite(half, half // 4))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        v = self.proj_in(check_maps(x, self.channels))
        u = v + self.contrast * (v - v.mean((2, 3), keepdim=True))
        return self.proj_out(torch.cat([self.near(u), self.far(u)], dim=1))


class WaveMixer(nn.Module):
    """W_3 of a 3x3 convolution, normalised, and with squeeze and excitation, of `wave_product(f, w)` with
    f = p t + p_m t_m, p = W_1 x and t = gelu(W_2 x), both of expand * channels channels, and m the channel in
    which the pixel of x is largest, added to all channels. No gradient goes into the choice of m.

    Shapes: x (batch, channels, h, w), channels a multiple of 8 -> same. The convolution is depthwise unless
    `groups` says otherwise; m is one of the first `channels` of p and t, as released.
    """

    def __init__(self, channels: int, expand: int = 4, groups: int | None = None) -> None:
        super().__init__()
        if not (isinstance(expand, int) and expand >= 2):
            raise ValueError(f"expand must be a whole number of at least 2, got {expand!r}.")
        wide = expand * _eighths(channels)
        self.channels = channels
        self.amplitude, self.phase = nn.Conv2d(channels, wide, 1), nn.Conv2d(channels, wide, 1)
        self.weight = nn.Parameter(torch.randn(wide // 2, 2))
        conv = conv_norm_act(wide, wide if groups is None else groups)
        self.conv = nn.Sequential(conv, SqueezeExcite(wide, channels // 4))
        self.proj_out = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        largest = check_maps(x, self.channels).argmax(1, keepdim=True)
        p, t = self.amplitude(x), F.gelu(self.phase(x))
        f = p * t + p.gather(1, largest) * t.gather(1, largest)
        wave = wave_product(f, self.weight).to(f.dtype)
        return self.proj_out(self.conv(wave))


@part(
    "spartan",
    "layers",
    title="SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition",
    paper="arXiv:2507.10999",
    number=197,
    replaces="block",
    search_space={"expand": Choice(2, 4), "grouped": Choice(False, True)},
)
class SpartanBlock(nn.Module):
    """A block of a convolutional network that is small in parameters: near and far convolutions, then
    channels mixed as waves.

    Equation: x + s_1 S(GN(x)), then x + s_2 W(GN(x)); S as `SpatialMixer`, W as `WaveMixer`, GN normalises
    all of an image together, s are learned per channel.

    Shapes: x (batch, channels, h, w), channels a multiple of 8 -> same, unitless.

    Defaults: expand 4 and s = 1e-5 as the authors', so that a block starts as the identity; `grouped` is the
    form of the second half of their stages, with cheaper convolutions in S and richer ones in W; no
    stochastic depth (`drop_path`).

    Raises: ValueError for channels that 8 does not divide, an expansion below 2, inputs of another shape or
    dtype, or an empty batch.

    Source: Pay et al., IJCNN 2025, arXiv:2507.10999; the authors' `src/model/spartan.py`.

    Not for: batches of one or two images in training, whose batch statistics are noise; layers that must have
    a Lipschitz constant: which channel is largest may change with a pixel.
    """

    def __init__(self, channels: int, expand: int = 4, grouped: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(1, _eighths(channels), eps=1e-6) for _ in range(2))
        self.spatial = SpatialMixer(channels, channels // 2 if grouped else 1)
        self.wave = WaveMixer(channels, expand, channels if grouped else None)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((channels, 1, 1), 1e-5)) for _ in range(2))
        self.drop = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        x = x + self.drop(self.scale1 * self.spatial(self.norm1(check_maps(x, self.spatial.channels))))
        return x + self.drop(self.scale2 * self.wave(self.norm2(x)))


def _eighths(channels: int) -> int:
    check_whole(channels=channels)
    if channels % 8:
        raise ValueError(f"channels must be a multiple of 8, got {channels}.")
    return channels
