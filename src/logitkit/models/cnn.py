"""The convolutional network: the reference backbone for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.models.base import Backbone, check_inputs
from logitkit.registry import Choice, part

Make = Callable[..., nn.Module]


def plain_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    """A convolution without bias, which a normalisation follows, that keeps the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)


@part(
    "cnn",
    "models",
    title="Small convolutional network",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"width": Choice(16, 24, 32)},
)
class CNN(Backbone):
    """Three 3x3 convolutions with group normalisation, fewer than 100 000 weights: the default for images
    from 8x8 to 64x64 pixels that must train in seconds on a laptop.

    Equation: h_i = down(relu(norm(W_i * h_{i-1}))) with widths (c, 2c, 4c), c = `width`; features = the mean
    of h_3 over positions. `down` halves the map by 2x2 max pooling while more than 4 pixels are left on the
    shorter side, at most `pools` times.

    Shapes: x (batch, channels, height, width) -> feature map (batch, 4c, h, w), pooled to (batch, 4c),
    unitless and at least 0.

    Defaults: c = 32, that is 128 features; torch's initialisation of `nn.Conv2d`; groups of 8 channels. All
    three layers may halve the map; pools=1 keeps it fine, for segmentation. `conv`, called with (in_channels,
    out_channels, kernel_size), puts other convolutions there.
    Group rather than batch normalisation, so that a row's output does not depend on the rest of its batch.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a width that is not a
    positive multiple of 8, an input of another shape or dtype, an empty batch or NaN.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998,
    section II; group normalisation from Wu and He, arXiv:1803.08494, equation 7.

    Not for: photographs beyond 64x64 pixels, which deserve a pretrained network and its embeddings.
    """

    def __init__(
        self, input_shape: Sequence[int], width: int = 32, pools: int = 3, *, conv: Make = plain_conv
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 3:
            raise ValueError(
                f"cnn reads images of shape (channels, height, width), got input_shape {self.input_shape};"
                " mlp and linear read any shape."
            )
        if not (isinstance(width, int) and width > 0 and width % 8 == 0):
            raise ValueError(f"width must be a positive multiple of 8, got {width!r}.")
        if pools not in range(4):
            raise ValueError(f"pools must be 0 to 3, got {pools!r}.")
        channels, height, wide = self.input_shape
        side = min(height, wide)
        layers: list[nn.Module] = []
        for out in (width, 2 * width, 4 * width):
            layers += [conv(channels, out, 3), nn.GroupNorm(out // 8, out)]
            if side > 4 and pools > 0:
                layers.append(nn.MaxPool2d(2))  # before the ReLU, which changes nothing but its cost
                side, pools = side // 2, pools - 1
            layers.append(nn.ReLU())
            channels = out
        self.layers = nn.Sequential(*layers)
        self.out_features = channels

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d h w"]:
        # Channels last, so that pooling goes over them at once; a clone has that layout even of one channel.
        return self.layers(check_inputs(x, self.input_shape).clone(memory_format=torch.channels_last))

    def pool(self, map: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d"]:
        return map.mean(dim=(2, 3))
