"""The slot: `Part(input_shape, ...)`, a backbone that turns a batch of examples into features for a head.

`forward_features(x)` is the last feature map, `pool(map)` makes it (batch, out_features), and `forward` is
one after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_numbers

__all__ = ["Backbone", "check_images", "check_inputs", "check_shape", "fitted_in", "patches_of"]


def check_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """`input_shape`, the shape of one example without the batch, as a tuple of positive whole numbers."""
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"input_shape must hold positive whole numbers, got {input_shape!r}.")
    return shape


def check_images(input_shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """Return the shape of one image, (channels, height, width), that `model=name` is to read.

    Raises ValueError for inputs that are no images.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{name} reads images of shape (channels, height, width), got input_shape {input_shape};"
            " mlp and linear read any shape."
        )
    channels, height, width = input_shape
    return channels, height, width


def patches_of(
    height: int, width: int, patch: int | None = None, most: int = 16
) -> tuple[int, tuple[int, int]]:
    """The side of a patch, and (height, width) of the image in patches, those at the border padded.

    patch: None for the smallest power of two that leaves at most `most` patches. Raises ValueError below 1.
    """
    if patch is None:
        patch = 1
        while -(-height // patch) * -(-width // patch) > most:
            patch *= 2
    if patch < 1:
        raise ValueError(f"patch must be at least 1 pixel, got {patch}.")
    return patch, (-(-height // patch), -(-width // patch))


def check_inputs(x: Tensor, input_shape: tuple[int, ...]) -> Tensor:
    """Return the batch `x` of examples of `input_shape`.

    Raises ValueError for another shape, a dtype that is not floating point, an empty batch or NaN.
    """
    if x.ndim != len(input_shape) + 1 or tuple(x.shape[1:]) != input_shape:
        expected = ", ".join(map(str, input_shape))
        raise ValueError(f"inputs must have shape (batch, {expected}), got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"inputs must be floating point, got {x.dtype}.")
    if x.shape[0] == 0:
        raise ValueError(f"inputs hold an empty batch, shape {tuple(x.shape)}; expected at least one row.")
    check_numbers(x, "inputs")
    return x


class Backbone(nn.Module):
    """Base of backbones: subclasses set `out_features` and define `forward_features`, and `pool` where the
    feature map is not already (batch, out_features).

    input_shape: shape of one example, without the batch.
    """

    out_features: int

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = check_shape(input_shape)

    def forward_features(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The last feature map, before pooling."""
        raise NotImplementedError

    def pool(self, map: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """The feature map as one vector per example."""
        return map

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        return self.pool(self.forward_features(x))


def fitted_in(make: Callable[..., nn.Module], *args: Any, **place: Any) -> nn.Module:
    """make(*args) with what it asks for by name of `place`, which says where the layer goes."""
    takes = inspect.signature(make).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return make(*args, **{k: v for k, v in place.items() if k in takes or open_ended})
