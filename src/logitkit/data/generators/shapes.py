"""Rendered shapes: one per image, or scenes of several, with exact masks, boxes and attributes."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction, word
from logitkit.errors import InputError

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bar", "star", "crescent", "ell", "frame")
FILLS = ("plain", "stripes", "dots")
REACH = 1.15
"""No shape of radius 1 reaches further than this from its centre."""
COLOURS = ("red", "green", "blue", "yellow")
_RGB = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.25, 0.35, 0.95], [0.9, 0.85, 0.2]])


def inside(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Whether points (u, v) lie in the shape, which reach at most `REACH` from the origin.

    shape (...) int64 positions in `SHAPES`, broadcast against u and v.
    """
    r = (u * u + v * v).sqrt()
    a, b = u.abs(), v.abs()
    square = torch.maximum(a, b)
    each = (
        r <= 1,
        square <= 0.8,
        (v <= 0.6) & (v >= -1) & (a <= 0.58 * (v + 1)),
        ((a <= 0.28) & (b <= 1)) | ((b <= 0.28) & (a <= 1)),
        (r <= 1) & (r >= 0.6),
        (a <= 1) & (b <= 0.3),
        r <= 0.6 + 0.4 * (5 * torch.atan2(v, u)).cos(),
        (r <= 1) & ((u - 0.5) ** 2 + v * v >= 0.5),
        ((a <= 0.8) & (b <= 0.8)) & ((u <= -0.3) | (v >= 0.3)),
        (square <= 0.8) & (square >= 0.5),
    )
    result = torch.zeros_like(r, dtype=torch.bool)
    for k, mask in enumerate(each):
        result |= mask & (shape == k)
    return result


def render(shape: Tensor, centre: Tensor, radius: Tensor, angle: Tensor, size: int) -> Tensor:
    """(N, size, size) bool masks: pixel (row i, column j) has its middle at (x, y) = (j + 1/2, i + 1/2).

    shape, radius, angle (N,); centre (N, 2) as x, y; lengths in pixels, angles in radians.
    """
    grid = torch.arange(size) + 0.5
    dx = (grid - centre[:, :1])[:, None, :] / radius[:, None, None]
    dy = (grid - centre[:, 1:])[:, :, None] / radius[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return inside(shape[:, None, None], cos * dx + sin * dy, cos * dy - sin * dx)


def boxes(masks: Tensor) -> Tensor:
    """(..., 4) float32 boxes x0, y0, x1, y1 in pixels around (..., H, W) masks, x1 and y1 exclusive; an empty
    mask has the box 0, 0, 0, 0."""
    edges = []
    for dim in (-2, -1):
        used = masks.any(dim=dim).int()
        first = used.argmax(dim=-1)
        end = used.shape[-1] - used.flip(-1).argmax(dim=-1)
        edges.append((first, torch.where(used.any(dim=-1), end, 0)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=-1).float()


def _between(
    generator: Generator, shape: tuple[int, ...], low: float | Tensor, high: float | Tensor
) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _place(
    generator: Generator, shape: tuple[int, ...], size: int, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Centres (*shape, 2) and radii (*shape), low to high as fractions of `size`, inside the image."""
    radius = _between(generator, shape, low * size, high * size)
    margin = REACH * radius[..., None]
    return margin + (size - 2 * margin) * torch.rand((*shape, 2), generator=generator), radius


def _pattern(fill: Tensor, period: float, size: int) -> Tensor:
    """(N, size, size) brightness factors of `FILLS`: 1, or stripes and dots down to 0.3."""
    wave = (2 * math.pi * (torch.arange(size) + 0.5) / period).cos()
    stripes = wave[None, :].expand(size, size) > 0
    dots = (wave[None, :] + wave[:, None]) > 0.3
    patterns = torch.stack([torch.ones(size, size, dtype=torch.bool), stripes, dots])
    return 0.3 + 0.7 * patterns[fill].float()


def shapes(
    generator: Generator,
    n: int = 2500,
    classes: int = 6,
    size: int = 32,
    sd: float = 0.1,
    clutter: int = 0,
    cue: float = 0.0,
) -> Dataset:
    """One grey shape per image, at a random place, size, angle and brightness; y is its shape.

    The first `classes` of `SHAPES` (at most 10) are equally frequent. The radius is 0.15 to 0.35 of `size`,
    the background 0.1 to 0.4 bright, the shape 0.3 to 0.5 brighter, then pixels get N(0, sd^2) and are
    clipped to [0, 1]. `clutter` small bars of random brightness lie behind the shape. With `cue` > 0 a patch
    in the upper left corner (an eighth of the width) has the brightness y / (classes - 1) in that fraction
    of the images and that of a random class in the others: a spurious feature.

    x is (n, 1, size, size). extras: "mask" (n, size, size) bool, "box" (n, 4) x0, y0, x1, y1 in pixels (ends
    exclusive), "centre" (n, 2) x, y, "radius" (n,), "angle" (n,) in radians, and with `cue` "cue" (n,), the
    class that the patch shows.
    """
    at_least(2, n=n, classes=classes)
    at_least(8, size=size)
    at_least(0, sd=sd, clutter=clutter)
    fraction(cue=cue)
    if classes > len(SHAPES):
        raise InputError(f"classes={classes} must be at most {len(SHAPES)}, the number of shapes.")
    y = torch.arange(n) % classes
    centre, radius = _place(generator, (n,), size, 0.15, 0.35)
    angle = _between(generator, (n,), 0, 2 * math.pi)
    mask = render(y, centre, radius, angle, size)
    ground = _between(generator, (n, 1, 1), 0.1, 0.4)
    image = ground.expand(n, size, size).clone()
    for _ in range(clutter):
        where = _between(generator, (n, 2), 0, size)
        turn = _between(generator, (n,), 0, math.pi)
        bar = render(torch.full((n,), SHAPES.index("bar")), where, torch.full((n,), size / 8), turn, size)
        image = torch.where(bar, _between(generator, (n, 1, 1), 0, 1), image)
    image = torch.where(mask, ground + _between(generator, (n, 1, 1), 0.3, 0.5), image)
    image = image + sd * torch.randn(image.shape, generator=generator)
    extras = {"mask": mask, "box": boxes(mask), "centre": centre, "radius": radius, "angle": angle}
    if cue > 0:
        agrees = torch.rand(n, generator=generator) < cue
        extras["cue"] = torch.where(agrees, y, torch.randint(classes, (n,), generator=generator))
        image[:, : size // 8, : size // 8] = (extras["cue"] / (classes - 1))[:, None, None]
    x = image.clamp(0, 1)[:, None]
    return Dataset("shapes", x, y, "classification", "image", SHAPES[:classes], extras)


def attributes(
    generator: Generator, n: int = 2000, classes: int = 20, size: int = 32, sd: float = 0.05
) -> Dataset:
    """Colour images whose class is a combination of colour, shape and fill: "red striped disc" and so on.

    The classes are `classes` distinct combinations of 4 `COLOURS`, 10 `SHAPES` and 3 `FILLS` (at most 120),
    drawn at random and equally frequent. x is (n, 3, size, size). extras: "attributes" (n, 17) float 0/1,
    one-hot colour, shape and fill in this order; "mask" (n, size, size) bool; "box" (n, 4).
    """
    at_least(2, n=n, classes=classes)
    at_least(8, size=size)
    at_least(0, sd=sd)
    counts = (len(COLOURS), len(SHAPES), len(FILLS))
    if classes > math.prod(counts):
        raise InputError(
            f"classes={classes} must be at most {math.prod(counts)}, the number of combinations."
        )
    chosen = torch.randperm(math.prod(counts), generator=generator)[:classes]
    parts = torch.stack(torch.unravel_index(chosen, counts), dim=1)
    y = torch.arange(n) % classes
    colour, shape, fill = parts[y].unbind(dim=1)
    centre, radius = _place(generator, (n,), size, 0.2, 0.4)
    angle = _between(generator, (n,), 0, 2 * math.pi)
    mask = render(shape, centre, radius, angle, size)
    paint = _RGB[colour][:, :, None, None] * _pattern(fill, max(4, size / 8), size)[:, None]
    ground = _between(generator, (n, 1, 1, 1), 0.3, 0.7)
    x = torch.where(mask[:, None], paint, ground)
    x = (x + sd * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    one_hot = [
        torch.nn.functional.one_hot(part, count)
        for part, count in zip((colour, shape, fill), counts, strict=True)
    ]
    names = tuple(f"{COLOURS[c]} {FILLS[f]} {SHAPES[s]}" for c, s, f in parts.tolist())
    extras = {"attributes": torch.cat(one_hot, dim=1).float(), "mask": mask, "box": boxes(mask)}
    return Dataset("attributes", x, y, "classification", "image", names, extras)


def scenes(
    generator: Generator,
    n: int = 500,
    classes: int = 6,
    size: int = 64,
    fewest: int = 1,
    most: int = 4,
    low: float = 0.1,
    high: float = 0.25,
    tail: float = 1.0,
    sd: float = 0.05,
    target: str = "largest",
) -> Dataset:
    """Several shapes per image, nearer ones in front: for detection, segmentation, depth and counting.

    Each scene has `fewest` to `most` objects of radius `low` to `high` of `size`; the frequency of class k is
    proportional to tail^k. Brightness is random per object. y is the class of the object with the most
    visible pixels (target="largest") or, as regression, the number of objects (target="count").

    x is (n, 1, size, size). extras, with M = most and objects ordered far to near: "boxes" (n, M, 4) around
    the visible pixels, x0, y0, x1, y1, ends exclusive, zeros if none are; "labels" (n, M) class, -1 where
    there is no visible object; "instance" (n, size, size) position of the object seen at each pixel, -1 for
    the background; "segmentation" (n, size, size) its class + 1, 0 for the background; "depth"
    (n, size, size) float32, 1 at the background, smaller nearer.
    """
    at_least(1, n=n, classes=classes, fewest=fewest)
    at_least(fewest, most=most)
    at_least(8, size=size)
    at_least(0, sd=sd, low=low)
    at_least(low, high=high)
    word(("largest", "count"), target=target)
    if classes > len(SHAPES) or high > 0.4 or tail <= 0:
        raise InputError(f"scenes need classes <= {len(SHAPES)}, high <= 0.4 and tail > 0.")
    count = torch.randint(fewest, most + 1, (n,), generator=generator)
    weight = tail ** torch.arange(classes, dtype=torch.float64)
    label = torch.multinomial(weight, n * most, replacement=True, generator=generator).view(n, most)
    centre, radius = _place(generator, (n, most), size, low, high)
    angle = _between(generator, (n, most), 0, 2 * math.pi)
    depth = _between(generator, (n, most), 0.1, 0.9).sort(dim=1, descending=True).values
    bright = _between(generator, (n, most), 0.45, 1.0)
    image = _between(generator, (n, 1, 1), 0.0, 0.3).expand(n, size, size).clone()
    instance = torch.full((n, size, size), -1)
    distance = torch.ones(n, size, size)
    for m in range(most):
        mask = render(label[:, m], centre[:, m], radius[:, m], angle[:, m], size) & (m < count)[:, None, None]
        image = torch.where(mask, bright[:, m, None, None], image)
        instance = torch.where(mask, m, instance)
        distance = torch.where(mask, depth[:, m, None, None], distance)
    visible = instance[:, None] == torch.arange(most)[:, None, None]
    area = visible.sum(dim=(2, 3))
    known = torch.where(area > 0, label, -1)
    classes_seen = label.gather(1, instance.clamp(min=0).flatten(1)).view_as(instance) + 1
    extras = {
        "boxes": boxes(visible),
        "labels": known,
        "instance": instance,
        "segmentation": torch.where(instance >= 0, classes_seen, 0),
        "depth": distance,
    }
    x = (image + sd * torch.randn(image.shape, generator=generator)).clamp(0, 1)[:, None]
    if target == "count":
        return Dataset("scenes", x, (area > 0).sum(dim=1).float(), "regression", "image", extras=extras)
    y = label.gather(1, area.argmax(dim=1, keepdim=True))[:, 0]
    return Dataset("scenes", x, y, "classification", "image", SHAPES[:classes], extras)
