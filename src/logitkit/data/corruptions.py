"""Corrupted images and the order in which a stream brings them: for robustness and test-time adaptation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from logitkit.errors import InputError, nearest


def corrupt(images: Tensor, kind: str, severity: float, generator: Generator) -> Tensor:
    """(N, C, H, W) images in [0, 1], corrupted and clipped to [0, 1].

    severity s from 0 (nearly nothing) to 1 (strong). Kinds: "gaussian" noise of standard deviation 0.4 s;
    "impulse", 0.4 s of the pixels become 0 or 1; "blur", Gaussian of standard deviation 2 s pixels;
    "contrast" reduced to 1 - 0.9 s around each image's mean; "brightness" raised by 0.5 s; "invert", mixed
    with 1 - x by s; "rotate" by up to 45 s degrees; "shift" by up to 0.25 s of the width; "occlude", a grey
    square covers 0.25 s of the area; "pixelate" to 1 - 0.75 s of the resolution.
    """
    if kind not in CORRUPTIONS:
        raise InputError(
            f"there is no corruption {kind!r}.{nearest(kind, CORRUPTIONS)} Known: {', '.join(CORRUPTIONS)}."
        )
    if not 0 <= severity <= 1:
        raise InputError(f"severity={severity} must be between 0 and 1.")
    return CORRUPTIONS[kind](images, severity, generator).clamp(0, 1)


def stream_order(y: Tensor, kind: str, generator: Generator, concentration: float = 0.1) -> Tensor:
    """(N,) the order in which rows with labels `y` (N,) arrive.

    kind: "iid" shuffled; "sorted" by class, classes in random order; "dirichlet", each of as many consecutive
    slots as there are classes gets a share of each class drawn from Dirichlet(concentration).
    """
    shuffled = torch.randperm(len(y), generator=generator)
    if kind == "iid":
        return shuffled
    classes, label = torch.unique(y[shuffled], return_inverse=True)
    count = len(classes)
    if kind == "sorted":
        return shuffled[torch.randperm(count, generator=generator)[label].argsort(stable=True)]
    if kind != "dirichlet":
        raise InputError(f"the stream order {kind!r} must be iid, sorted or dirichlet.")
    draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    share = torch.from_numpy(draw.dirichlet([concentration] * count, size=count))
    slot = torch.multinomial(share[label], 1, generator=generator)[:, 0]
    return shuffled[slot.argsort(stable=True)]


def _gaussian(x: Tensor, s: float, g: Generator) -> Tensor:
    return x + 0.4 * s * torch.randn(x.shape, generator=g)


def _impulse(x: Tensor, s: float, g: Generator) -> Tensor:
    place = torch.rand(len(x), 1, *x.shape[2:], generator=g)
    value = torch.randint(2, place.shape, generator=g).to(x.dtype)
    return torch.where(place < 0.4 * s, value, x)


def _blur(x: Tensor, s: float, g: Generator) -> Tensor:
    if s == 0:
        return x
    reach = min(math.ceil(6 * s), min(x.shape[2:]) - 1)
    weight = (-(torch.arange(-reach, reach + 1) ** 2) / (2 * (2 * s) ** 2)).exp()
    weight = (weight / weight.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, weight[:, :, None, :], groups=x.shape[1])
    return F.conv2d(across, weight[:, :, :, None], groups=x.shape[1])


def _contrast(x: Tensor, s: float, g: Generator) -> Tensor:
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1 - 0.9 * s) * (x - mean)


def _brightness(x: Tensor, s: float, g: Generator) -> Tensor:
    return x + 0.5 * s


def _invert(x: Tensor, s: float, g: Generator) -> Tensor:
    return (1 - s) * x + s * (1 - x)


def _warp(x: Tensor, angle: Tensor, move: Tensor) -> Tensor:
    """Each image turned by `angle` (N,) radians and moved by `move` (N, 2) half-widths, edges repeated."""
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], dim=1)
    grid = F.affine_grid(torch.cat([rows, move[:, :, None]], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _rotate(x: Tensor, s: float, g: Generator) -> Tensor:
    angle = math.radians(45) * s * (2 * torch.rand(len(x), generator=g) - 1)
    return _warp(x, angle, torch.zeros(len(x), 2))


def _shift(x: Tensor, s: float, g: Generator) -> Tensor:
    return _warp(x, torch.zeros(len(x)), 0.5 * s * (2 * torch.rand(len(x), 2, generator=g) - 1))


def _occlude(x: Tensor, s: float, g: Generator) -> Tensor:
    height, width = x.shape[2:]
    side = round(0.5 * math.sqrt(s) * min(height, width))
    top, left = (torch.randint(extent - side + 1, (len(x), 1), generator=g) for extent in (height, width))
    rows, columns = torch.arange(height), torch.arange(width)
    covered = ((rows >= top) & (rows < top + side))[:, :, None]
    covered = covered & ((columns >= left) & (columns < left + side))[:, None, :]
    return torch.where(covered[:, None], 0.5, x)


def _pixelate(x: Tensor, s: float, g: Generator) -> Tensor:
    height, width = (max(1, round(extent * (1 - 0.75 * s))) for extent in x.shape[2:])
    return F.interpolate(F.adaptive_avg_pool2d(x, (height, width)), size=list(x.shape[2:]), mode="nearest")


CORRUPTIONS: Mapping[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gaussian": _gaussian,
    "impulse": _impulse,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "invert": _invert,
    "rotate": _rotate,
    "shift": _shift,
    "occlude": _occlude,
    "pixelate": _pixelate,
}
