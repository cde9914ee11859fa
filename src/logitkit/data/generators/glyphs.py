"""Glyphs: characters of an invented script, as many classes as wanted."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least
from logitkit.data.generators.points import numbered

PIECES = 6
"""Straight pieces that each curved stroke is drawn with."""
CHUNK = 256
"""Images rendered at a time, which bounds memory."""


def glyphs(
    generator: Generator,
    n: int = 4000,
    classes: int = 40,
    size: int = 28,
    strokes: int = 3,
    jitter: float = 1.0,
    sd: float = 0.1,
) -> Dataset:
    """Each class is `strokes` random curves; each image is a distorted drawing of its class.

    A stroke is a quadratic Bezier curve with its ends and its middle uniform in the unit square. An image
    shifts every control point by N(0, (0.03 jitter)^2), then rotates by up to 15 jitter degrees, scales by
    up to 15 jitter percent, shears by up to 0.15 jitter and moves by up to 8 jitter percent of the width,
    and draws with a pen of 1.2 pixels (at size 28) on black; pixels get N(0, sd^2) and are clipped to [0, 1].

    x is (n, 1, size, size), y the class, equally frequent. Held-out classes for few-shot tasks are chosen by
    taking rows by y.
    """
    at_least(2, n=n, classes=classes)
    at_least(8, size=size)
    at_least(1, strokes=strokes)
    at_least(0, jitter=jitter, sd=sd)
    control = torch.rand(classes, strokes, 3, 2, generator=generator) - 0.5
    y = torch.arange(n) % classes
    points = control[y] + 0.03 * jitter * torch.randn(n, strokes, 3, 2, generator=generator)

    def up_to(limit: float) -> Tensor:
        return jitter * limit * (2 * torch.rand(n, generator=generator) - 1)

    turn, scale, shear = up_to(math.radians(15)), 0.75 * (1 + up_to(0.15)), up_to(0.15)
    cos, sin = turn.cos() * scale, turn.sin() * scale
    affine = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], dim=1).view(n, 1, 2, 2)
    move = torch.stack([up_to(0.08), up_to(0.08)], dim=1)[:, None, None]
    points = (points @ affine.mT + move + 0.5) * size
    ink = torch.cat([_draw(each, size, 1.2 * size / 28) for each in points.split(CHUNK)])
    x = (ink + sd * torch.randn(ink.shape, generator=generator)).clamp(0, 1)[:, None]
    return Dataset("glyphs", x, y, "classification", "image", numbered(classes))


def _draw(control: Tensor, size: int, pen: float) -> Tensor:
    """(B, size, size) ink in [0, 1] of quadratic curves with control points (B, strokes, 3, 2) in pixels: 1
    within half a pen of the curve, falling to 0 over one pixel."""
    t = torch.linspace(0, 1, PIECES + 1)[:, None]
    basis = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], dim=1)
    line = basis @ control
    start, end = line[:, :, :-1].flatten(1, 2), line[:, :, 1:].flatten(1, 2)
    grid = torch.arange(size) + 0.5
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).view(1, 1, -1, 2)
    along = end - start
    length = (along * along).sum(dim=-1).clamp(min=1e-9)
    toward = ((pixels - start[:, :, None]) * along[:, :, None]).sum(dim=-1) / length[..., None]
    nearest = start[:, :, None] + toward.clamp(0, 1)[..., None] * along[:, :, None]
    distance = (pixels - nearest).norm(dim=-1).amin(dim=1)
    return (pen / 2 + 0.5 - distance).clamp(0, 1).view(-1, size, size)
