"""Tables of numbers: classification and regression functions with known truth, and columns of every type."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator

from logitkit.data.base import Column, Dataset, Table
from logitkit.data.generators.check import at_least, fraction
from logitkit.data.generators.points import numbered


def tabular(
    generator: Generator,
    n: int = 400,
    dim: int = 100,
    informative: int = 10,
    classes: int = 2,
    flip: float = 0.1,
) -> Dataset:
    """Classification with mostly irrelevant columns: y = argmax of a random quadratic function.

    x ~ N(0, I) is (n, dim). The score of class k is w_k . z + z' A_k z / sqrt(informative), with z the first
    `informative` columns and w, A standard normal, each class with the same number of rows to within chance.
    `flip` of the labels, in every split, are redrawn among the other classes. extras: "y_true" (n,).
    """
    at_least(2, n=n, classes=classes)
    at_least(1, informative=informative)
    at_least(informative, dim=dim)
    fraction(flip=flip)
    w = torch.randn(informative, classes, generator=generator)
    a = torch.randn(classes, informative, informative, generator=generator) / math.sqrt(informative)
    x = torch.randn(n, dim, generator=generator)
    z = x[:, :informative]
    scores = z @ w + torch.einsum("ni,kij,nj->nk", z, a, z)
    y = (scores - scores.mean(dim=0)).argmax(dim=1)
    wrong = torch.rand(n, generator=generator) < flip
    label = torch.where(wrong, (y + torch.randint(1, classes, (n,), generator=generator)) % classes, y)
    return Dataset("tabular", x, label, "classification", "vector", numbered(classes), {"y_true": y})


def friedman(generator: Generator, n: int = 1000, nuisance: int = 5, sd: float = 1.0) -> Dataset:
    """Friedman's first function: y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + N(0, sd^2).

    x is (n, 5 + nuisance), uniform in [0, 1]; only the first five columns matter. extras: "mean" (n,), y
    without noise. (Friedman 1991, Multivariate adaptive regression splines.)
    """
    at_least(2, n=n)
    at_least(0, nuisance=nuisance, sd=sd)
    x = torch.rand(n, 5 + nuisance, generator=generator)
    mean = 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = mean + sd * torch.randn(n, generator=generator)
    return Dataset("friedman", x, y, "regression", "vector", extras={"mean": mean})


def linear(generator: Generator, n: int = 1000, dim: int = 20, sd: float = 1.0) -> Dataset:
    """Linear regression, Gaussian design: y = x . w + N(0, sd^2), x ~ N(0, I) of shape (n, dim), |w| = 1.

    extras: "mean" (n,), x . w.
    """
    at_least(2, n=n)
    at_least(1, dim=dim)
    at_least(0, sd=sd)
    w = torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=0)
    x = torch.randn(n, dim, generator=generator)
    mean = x @ w
    y = mean + sd * torch.randn(n, generator=generator)
    return Dataset("linear", x, y, "regression", "vector", extras={"mean": mean})


def bimodal(generator: Generator, n: int = 4000, bins: int = 50, sd: float = 0.1) -> Dataset:
    """A conditional density with two modes, as a classification over bins.

    (u, v) is uniform in [-1, 1]^2 and z is u or v, by a fair coin, plus N(0, sd^2); y is the bin of z out of
    `bins` equal ones on [-1, 1] (values outside go to the outer bins). x is (n, 2).
    extras: "z" (n,), and "probability" (n, bins), the true distribution of y given x.
    """
    at_least(2, n=n, bins=bins)
    at_least(1e-6, sd=sd)
    x = 2 * torch.rand(n, 2, generator=generator) - 1
    coin = torch.randint(2, (n, 1), generator=generator)
    z = x.gather(1, coin)[:, 0] + sd * torch.randn(n, generator=generator)
    y = ((z + 1) / 2 * bins).floor().long().clamp(0, bins - 1)
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    edges[0], edges[-1] = -math.inf, math.inf
    below = torch.special.ndtr((edges - x.double()[..., None]) / sd).mean(dim=1)
    extras = {"z": z, "probability": below.diff(dim=1).float()}
    return Dataset("bimodal", x, y, "classification", "vector", numbered(bins), extras)


def mixed(generator: Generator, n: int = 1000, missing: float = 0.05) -> Dataset:
    """A raw table like one from practice: loans with numbers of different scales, a category, a boolean and
    a date, where a fraction `missing` of the income, region and opened cells is empty.

    Columns: income (log-normal, median 30000), age (years, uniform in [18, 80]), region (one of five), owner
    (0 or 1), opened (days since 1970, 2010 to 2020). The label is "default" with probability
    sigmoid(-1.5 log(income / 30000) - 0.03 (age - 45) + r_region - owner), else "repaid".
    """
    at_least(2, n=n)
    fraction(missing=missing)
    income = (math.log(30_000) + 0.6 * torch.randn(n, generator=generator, dtype=torch.float64)).exp()
    age = (18 + 62 * torch.rand(n, generator=generator, dtype=torch.float64)).floor()
    region = torch.randint(5, (n,), generator=generator)
    owner = torch.randint(2, (n,), generator=generator).double()
    opened = (14_610 + 3_653 * torch.rand(n, generator=generator, dtype=torch.float64)).floor()
    effect = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)[region]
    score = -1.5 * (income / 30_000).log() - 0.03 * (age - 45) + effect - owner
    y = (torch.rand(n, generator=generator, dtype=torch.float64) > score.sigmoid()).long()
    empty = (torch.rand(3, n, generator=generator) < missing).numpy()
    table = Table(
        {
            "income": Column("number", np.where(empty[0], np.nan, income.numpy())),
            "age": Column("number", age.numpy()),
            "region": Column(
                "category",
                np.where(empty[1], -1, region.numpy()),
                ("centre", "east", "north", "south", "west"),
            ),
            "owner": Column("number", owner.numpy()),
            "opened": Column("date", np.where(empty[2], np.nan, opened.numpy())),
        }
    )
    return Dataset("mixed", table, y, "classification", "table", ("default", "repaid"))
