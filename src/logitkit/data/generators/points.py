"""Points in the plane and in space: moons, spirals, Gaussian mixtures flat and hierarchical."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.errors import InputError


def numbered(count: int) -> tuple[str, ...]:
    """Class names "0", "1", ..."""
    return tuple(str(k) for k in range(count))


def zipf(count: int, exponent: float) -> Tensor:
    """(count,) probabilities proportional to 1 / rank^exponent; uniform for exponent 0."""
    weight = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    return weight / weight.sum()


def long_tailed(n: int, classes: int, exponent: float) -> Tensor:
    """(n,) classes with frequencies proportional to 1 / rank^exponent, but no fewer than 5 rows each."""
    at_least(5 * classes, n=n)
    spare = zipf(classes, exponent) * (n - 5 * classes)
    count = spare.floor().long() + 5
    count[: n - int(count.sum())] += 1
    return torch.arange(classes).repeat_interleave(count)


def moons(generator: Generator, n: int = 1000, sd: float = 0.1) -> Dataset:
    """Two interleaved half circles of radius 1 in the plane, plus Gaussian noise of standard deviation `sd`.

    Class 0 is (cos t, sin t), class 1 is (1 - cos t, 1/2 - sin t), t uniform in [0, pi]; x is (n, 2).
    """
    at_least(2, n=n)
    at_least(0, sd=sd)
    y = torch.arange(n) % 2
    t = math.pi * torch.rand(n, generator=generator)
    up = torch.stack([t.cos(), t.sin()], dim=1)
    down = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)
    x = torch.where(y[:, None] == 0, up, down) + sd * torch.randn(n, 2, generator=generator)
    return Dataset("moons", x, y, "classification", "vector", numbered(2))


def spirals(
    generator: Generator, n: int = 1000, arms: int = 3, turns: float = 1.0, sd: float = 0.03
) -> Dataset:
    """`arms` spirals in the unit disc, one class each: radius r uniform in [0.1, 1], angle
    2 pi (turns r + arm / arms), plus Gaussian noise of standard deviation `sd`; x is (n, 2)."""
    at_least(2, n=n, arms=arms)
    at_least(0, sd=sd)
    y = torch.arange(n) % arms
    r = 0.1 + 0.9 * torch.rand(n, generator=generator)
    angle = 2 * math.pi * (turns * r + y / arms)
    x = r[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    x = x + sd * torch.randn(n, 2, generator=generator)
    return Dataset("spirals", x, y, "classification", "vector", numbered(arms))


def mixture(
    generator: Generator,
    n: int = 2000,
    classes: int = 10,
    dim: int = 16,
    separation: float = 4.0,
    modes: int = 1,
    correlation: float = 0.0,
    block: int = 8,
    tail: float = 0.0,
    flip: float = 0.0,
) -> Dataset:
    """Gaussian mixture: x = centre[y, mode] + e, with e ~ N(0, S).

    Centres are N(0, separation^2 / (2 dim) I), so that two of them are about `separation` standard
    deviations apart. S has unit variances and `correlation` within blocks of `block` features. Classes are
    equally frequent, or proportional to 1 / rank^tail. `flip` of the labels, in every split, are redrawn
    uniformly: noise that no classifier can undo (`+noise=` instead leaves the test labels clean).

    extras: "mode" (n,) int64 and "mean" (n, dim) the centre each row came from, "y_true" (n,) the label
    before `flip`.
    """
    at_least(2, n=n, classes=classes)
    at_least(1, dim=dim, modes=modes, block=block)
    at_least(0, separation=separation, tail=tail)
    fraction(correlation=correlation, flip=flip)
    centres = torch.randn(classes, modes, dim, generator=generator) * separation / math.sqrt(2 * dim)
    y = long_tailed(n, classes, tail) if tail else torch.arange(n) % classes
    mode = torch.randint(modes, (n,), generator=generator)
    mean = centres[y, mode]
    shared = torch.randn(n, -(-dim // block), generator=generator).repeat_interleave(block, dim=1)[:, :dim]
    own = torch.randn(n, dim, generator=generator)
    x = mean + math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    redrawn = torch.rand(n, generator=generator) < flip
    label = torch.where(redrawn, torch.randint(classes, (n,), generator=generator), y)
    extras = {"mode": mode, "mean": mean, "y_true": y}
    return Dataset("mixture", x, label, "classification", "vector", numbered(classes), extras)


def hierarchy(
    generator: Generator,
    n: int = 4000,
    groups: int = 10,
    classes: int = 100,
    dim: int = 32,
    separation: float = 8.0,
    spread: float = 3.0,
    tail: float = 0.0,
) -> Dataset:
    """Classes in topical groups: x = group centre + class offset + N(0, I).

    Group centres are about `separation` standard deviations apart and classes of one group about `spread`,
    so that confusions stay within groups. Class k belongs to group k mod groups. Classes are equally
    frequent, or proportional to 1 / rank^tail (long-tailed). extras: "group" (n,) int64.
    """
    at_least(2, n=n, classes=classes)
    at_least(1, groups=groups, dim=dim)
    at_least(0, separation=separation, spread=spread, tail=tail)
    top = torch.randn(groups, dim, generator=generator) * separation / math.sqrt(2 * dim)
    offset = torch.randn(classes, dim, generator=generator) * spread / math.sqrt(2 * dim)
    y = long_tailed(n, classes, tail) if tail else torch.arange(n) % classes
    group = y % groups
    x = top[group] + offset[y] + torch.randn(n, dim, generator=generator)
    return Dataset("hierarchy", x, y, "classification", "vector", numbered(classes), {"group": group})


def words(generator: Generator, bits: int = 12) -> Dataset:
    """Every word of `bits` bits, in random order, halved by a rule: x (2^bits, bits) of -1 and 1, y = 1 where
    w . x + u x_a x_b + v x_c x_d is above its median; w, u and v are normal, of standard deviation 1 and 2,
    the four places drawn.

    A domain small enough to be known whole, so that information about the input can be counted.
    """
    at_least(4, bits=bits)
    if bits > 20:
        raise InputError(f"bits={bits} must be at most 20: the data are all 2^bits words.")
    every = torch.arange(2**bits)[torch.randperm(2**bits, generator=generator)]
    x = ((every[:, None] >> torch.arange(bits)) & 1).float() * 2 - 1
    weight, pair = torch.randn(bits, generator=generator), 2 * torch.randn(2, generator=generator)
    a, b, c, d = torch.randperm(bits, generator=generator)[:4].tolist()
    score = x @ weight + pair[0] * x[:, a] * x[:, b] + pair[1] * x[:, c] * x[:, d]
    return Dataset("words", x, (score > score.median()).long(), "classification", "vector", numbered(2))
