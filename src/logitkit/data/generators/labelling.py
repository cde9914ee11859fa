"""Labels that people gave: several votes per item, and ratings by judges of different severity."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.data.generators.points import mixture, numbered


def crowd(
    generator: Generator,
    n: int = 500,
    classes: int = 5,
    workers: int = 50,
    share: float = 0.4,
    dim: int = 16,
) -> Dataset:
    """Items with a true and a confusable class, labelled by workers of different skill.

    Item j has the true class y_j, the confusable class h_j and the clarity q_j ~ U(1/2, 1). Worker i answers
    item j with probability `share`; with probability p_i ~ U(0, 1) it answers y_j (probability q_j) or h_j
    (1 - q_j), otherwise a class uniformly at random. x (n, dim) are features from `mixture` with separation
    4; y is the true class, which training and validation rows lose when they are split.

    extras: "votes" (n, workers) int64, -1 where worker i did not answer; "second" (n,) h; "clarity" (n,) q;
    "skill" (n, workers) p, the same in every row.
    """
    at_least(2, n=n, classes=classes)
    at_least(1, workers=workers, dim=dim)
    fraction(share=share)
    source = mixture(generator, n=n, classes=classes, dim=dim)
    extras = crowd_votes(generator, source.y, classes, workers, share)
    return Dataset("crowd", source.x, source.y, "crowd", "vector", numbered(classes), extras)


def crowd_votes(
    generator: Generator, y: Tensor, classes: int, workers: int, share: float
) -> dict[str, Tensor]:
    """Votes on items whose true classes are y (n,), by the model of `crowd`, and what they were drawn from:
    the extras of that data set."""
    n = len(y)
    second = (y + torch.randint(1, classes, (n,), generator=generator)) % classes
    clarity = 0.5 + 0.5 * torch.rand(n, generator=generator)
    skill = torch.rand(workers, generator=generator)

    def chance(probability: Tensor) -> Tensor:
        return torch.rand(n, workers, generator=generator) < probability

    informed = torch.where(chance(clarity[:, None]), y[:, None], second[:, None])
    guess = torch.randint(classes, (n, workers), generator=generator)
    votes = torch.where(chance(skill), informed, guess)
    votes = torch.where(chance(torch.tensor(share)), votes, -1)
    return {"votes": votes, "second": second, "clarity": clarity, "skill": skill.expand(n, workers).clone()}


def ratings(
    generator: Generator,
    n: int = 600,
    levels: int = 5,
    items: int = 8,
    judges: int = 150,
    each: int = 4,
    severity: float = 1.0,
    spammers: float = 0.1,
    dim: int = 16,
) -> Dataset:
    """Ordinal ratings by judges, by the many-facet Rasch model.

    Subject j has the value theta_j ~ N(0, 1), item k the difficulty d_k ~ N(0, 1/4), judge i the severity
    s_i ~ N(0, severity^2). The rating is the number of thresholds t_1 < ... < t_{levels-1}, equally spaced
    in [-2, 2], that lie below theta_j - d_k - s_i + logistic noise; `spammers` of the judges rate at random.
    Each subject is rated by `each` judges on all items, and voted on once: the judge's rating of an item
    without difficulty. x (n, dim) is linear in theta plus N(0, 1) noise; y is the level of theta itself,
    classes in order.

    extras: "ratings" (n, each, items) int64; "votes" (n, judges) int64, -1 where judge i did not see subject
    j, which alone training and validation rows know with `+task=crowd`; "judge" (n, each) int64; "theta"
    (n,); "severity" (n, each); "spammer" (n, each) bool.
    """
    at_least(2, n=n, levels=levels)
    at_least(1, items=items, each=each, dim=dim)
    at_least(each, judges=judges)
    at_least(0, severity=severity)
    fraction(spammers=spammers)
    theta = torch.randn(n, generator=generator)
    difficulty = 0.5 * torch.randn(items, generator=generator)
    strict = severity * torch.randn(judges, generator=generator)
    spam = torch.rand(judges, generator=generator) < spammers
    judge = torch.rand(n, judges, generator=generator).argsort(dim=1)[:, :each]
    thresholds = torch.linspace(-2, 2, levels + 1)[1:-1]
    noise = torch.logit(torch.rand(n, each, items, generator=generator), eps=1e-6)
    felt = theta[:, None, None] - strict[judge][:, :, None] - difficulty + noise
    rating = torch.bucketize(felt, thresholds)
    random = torch.randint(levels, rating.shape, generator=generator)
    rating = torch.where(spam[judge][:, :, None], random, rating)
    direction = torch.randn(dim, generator=generator)
    x = theta[:, None] * direction + torch.randn(n, dim, generator=generator)
    noise = torch.logit(torch.rand(n, each, generator=generator), eps=1e-6)
    vote = torch.bucketize(theta[:, None] - strict[judge] + noise, thresholds)
    vote = torch.where(spam[judge], torch.randint(levels, vote.shape, generator=generator), vote)
    extras = {
        "ratings": rating,
        "votes": torch.full((n, judges), -1).scatter(1, judge, vote),
        "judge": judge,
        "theta": theta,
        "severity": strict[judge],
        "spammer": spam[judge],
    }
    y = torch.bucketize(theta, thresholds)
    return Dataset("ratings", x, y, "classification", "vector", numbered(levels), extras)
