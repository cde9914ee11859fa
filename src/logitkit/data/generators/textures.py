"""Textures: gratings, dots, checks and noise, optionally with a local defect."""

from __future__ import annotations

import math

import torch
from torch import Generator

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.errors import InputError

PATTERNS = ("stripes", "dots", "checks", "waves", "rings", "noise")


def textures(
    generator: Generator,
    n: int = 2000,
    classes: int = 6,
    size: int = 32,
    sd: float = 0.05,
    defect: float = 0.0,
) -> Dataset:
    """Images filled by a texture of random period (4 to 8 pixels), orientation and phase; y is the pattern.

    With f = 2 pi / period and (u, v) the rotated pixel coordinates: stripes cos(f u); dots cos(f u) cos(f v)
    cut at 0.3; checks sign(cos(f u) cos(f v)); waves cos(f u + 2 cos(f v / 2)); rings cos(f r) around a
    random point; noise: white noise averaged over 3 x 3 pixels. Contrast is 0.25 around a mean of 0.5,
    pixels get N(0, sd^2) and are clipped to [0, 1]. A fraction `defect` of the images has a disc of radius
    0.1 to 0.2 of `size` in which the texture is turned by a quarter and made brighter by 0.2.

    x is (n, 1, size, size). extras: "angle", "period" (n,), "defect" (n, size, size) bool.
    """
    at_least(2, n=n, classes=classes)
    at_least(8, size=size)
    at_least(0, sd=sd)
    fraction(defect=defect)
    if classes > len(PATTERNS):
        raise InputError(f"classes={classes} must be at most {len(PATTERNS)}, the number of patterns.")
    y = torch.arange(n) % classes
    angle = math.pi * torch.rand(n, generator=generator)
    period = 4 + 4 * torch.rand(n, generator=generator)
    phase = size * torch.rand(n, 2, generator=generator)
    radius = size * (0.1 + 0.1 * torch.rand(n, generator=generator))
    middle = size * (0.2 + 0.6 * torch.rand(n, 2, generator=generator))
    broken = torch.rand(n, generator=generator) < defect
    grid = torch.arange(size) + 0.5
    row, column = torch.meshgrid(grid, grid, indexing="ij")
    away = (column - middle[:, :1, None]) ** 2 + (row - middle[:, 1:, None]) ** 2
    spot = (away <= radius[:, None, None] ** 2) & broken[:, None, None]

    turn = angle[:, None, None] + math.pi / 2 * spot
    f = (2 * math.pi / period)[:, None, None]
    dx, dy = column - phase[:, :1, None], row - phase[:, 1:, None]
    u, v = turn.cos() * dx + turn.sin() * dy, turn.cos() * dy - turn.sin() * dx
    product = (f * u).cos() * (f * v).cos()
    white = torch.randn(n, 1, size + 2, size + 2, generator=generator)
    smooth = 3 * torch.nn.functional.avg_pool2d(white, 3, stride=1)[:, 0]
    every = torch.stack(
        [
            (f * u).cos(),
            torch.where(product > 0.3, 1.0, -1.0),
            product.sign(),
            (f * u + 2 * (f * v / 2).cos()).cos(),
            (f * (dx * dx + dy * dy).sqrt()).cos(),
            smooth.clamp(-1, 1),
        ]
    )
    image = 0.5 + 0.25 * every[y, torch.arange(n)] + 0.2 * spot
    x = (image + sd * torch.randn(image.shape, generator=generator)).clamp(0, 1)[:, None]
    extras = {"angle": angle, "period": period, "defect": spot}
    return Dataset("textures", x, y, "classification", "image", PATTERNS[:classes], extras)
