"""Similarities of images to texts, as a vision-language model gives them."""

from __future__ import annotations

import math

import torch
from torch import Generator

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.data.generators.points import numbered
from logitkit.errors import InputError


def concepts(
    generator: Generator,
    n: int = 2000,
    classes: int = 20,
    concepts: int = 64,
    relevant: int = 24,
    each: int = 3,
    miss: float = 0.1,
    sd: float = 1.5,
) -> Dataset:
    """Similarities of images to the texts of concepts, of which each class has a few and most classes none.

    The similarity of image j of class y to concept m is b_m + g_m z_jm + u_j + e_jm. b_m ~ N(20, 4) is how
    close any image is to the text, g_m ~ U(2, 4) how much closer one that shows the concept, u_j ~ N(0, 1)
    what an image has for all texts, e_jm ~ N(0, sd^2); the units are those of CLIP's logits, 100 cosines.
    z_jm is 1 where the image shows the concept: each class has a set of its own of `each` concepts out of the
    first `relevant`, an image misses each of them with probability `miss`; the other columns are
    distractors, which no image shows. Classes are equally frequent; x is (n, concepts).

    extras: "attributes" (n, concepts) float 0/1, the concepts of the row's class; "shown" (n, concepts) bool.
    """
    at_least(2, n=n, classes=classes)
    at_least(1, each=each)
    at_least(each, relevant=relevant)
    at_least(relevant, concepts=concepts)
    at_least(0, sd=sd)
    fraction(miss=miss)
    if classes > math.comb(relevant, each):
        raise InputError(
            f"classes={classes} must be at most {math.comb(relevant, each)}, the sets of {each} out of"
            f" {relevant} concepts."
        )
    sets: dict[tuple[int, ...], None] = {}
    while len(sets) < classes:
        drawn = torch.randperm(relevant, generator=generator)[:each]
        sets[tuple(drawn.sort().values.tolist())] = None
    table = torch.zeros(classes, concepts).scatter(1, torch.tensor(list(sets)), 1.0)
    y = torch.arange(n) % classes
    shown = (table[y] > 0) & (torch.rand(n, concepts, generator=generator) >= miss)
    base = 20 + 2 * torch.randn(concepts, generator=generator)
    gain = 2 + 2 * torch.rand(concepts, generator=generator)
    x = base + gain * shown + torch.randn(n, 1, generator=generator)
    x = x + sd * torch.randn(n, concepts, generator=generator)
    extras = {"attributes": table[y], "shown": shown}
    return Dataset("concepts", x, y, "classification", "vector", numbered(classes), extras)
