"""Matching: queries with several relevant labels out of many, the same thing seen in two ways, and questions
that one of many documents answers."""

from __future__ import annotations

import math

import torch
from torch import Generator

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.data.generators.points import numbered, zipf
from logitkit.errors import InputError

ATTRIBUTES, VALUES = 8, 12


def extreme(
    generator: Generator,
    n: int = 6000,
    classes: int = 3000,
    groups: int = 300,
    dim: int = 64,
    most: int = 12,
    tail: float = 0.8,
) -> Dataset:
    """Extreme multi-label classification: queries with 1 to `most` relevant labels out of `classes`.

    Labels have N(0, I) vectors in topical groups (label k in group k mod groups; vector = group vector + half
    as large an own part). A query draws its first label with probability proportional to 1 / rank^tail, the
    others, without repetition, from the same group as far as it reaches; x (n, dim) is the mean of their
    vectors plus N(0, 0.3^2).

    y (n, most) int64 are the relevant labels, the first draw first and -1 after the last. extras: "group"
    (n,).
    """
    at_least(2, n=n, classes=classes)
    at_least(2, groups=groups)
    at_least(1, dim=dim, most=most)
    at_least(groups, classes=classes)
    at_least(0, tail=tail)
    vector = torch.randn(groups, dim, generator=generator)[torch.arange(classes) % groups]
    vector = vector + 0.5 * torch.randn(classes, dim, generator=generator)
    first = torch.multinomial(zipf(classes, tail), n, replacement=True, generator=generator)
    group = first % groups
    members = (classes - group - 1) // groups + 1
    count = 1 + torch.randint(most, (n,), generator=generator).minimum(members - 1)
    widest = int(members.max())
    key = torch.rand(n, widest, generator=generator)
    key[torch.arange(widest) >= members[:, None]] = math.inf
    key.scatter_(1, (first // groups)[:, None], -1.0)
    ranked = key.argsort(dim=1)[:, :most] * groups + group[:, None]
    ranked = torch.nn.functional.pad(ranked, (0, max(0, most - widest)))
    relevant = torch.arange(most) < count[:, None]
    labels = torch.where(relevant, ranked, -1)
    mean = (vector[labels.clamp(min=0)] * relevant[..., None]).sum(dim=1) / count[:, None]
    x = mean + 0.3 * torch.randn(n, dim, generator=generator)
    return Dataset("extreme", x, labels, "multilabel", "vector", numbered(classes), {"group": group})


def pairs(
    generator: Generator,
    n: int = 4000,
    classes: int = 20,
    dim: int = 64,
    sd: float = 1.0,
    hubs: float = 0.0,
) -> Dataset:
    """Two views of the same latent, as two modalities would give, for contrastive learning and retrieval.

    The latent z = centre[y] + N(0, I) in dim dimensions has `classes` clusters of different tightness (the
    centre of class k is scaled by 2 (k + 1) / classes). The views are z Q1 + N(0, sd^2) and z Q2 + N(0,
    sd^2) with random orthogonal Q1, Q2. A fraction `hubs` of the second views is pulled half way to the mean
    of all: near everything, a hub.

    x (n, dim) is the first view. extras: "view" (n, dim) the second, "latent" (n, dim), "hub" (n,) bool.
    """
    at_least(2, n=n, classes=classes)
    at_least(1, dim=dim)
    at_least(0, sd=sd)
    fraction(hubs=hubs)
    y = torch.arange(n) % classes
    size = 2 * (torch.arange(classes) + 1) / classes
    centre = torch.randn(classes, dim, generator=generator) * size[:, None]
    latent = centre[y] + torch.randn(n, dim, generator=generator)
    views = []
    for _ in range(2):
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
        views.append(latent @ turn + sd * torch.randn(n, dim, generator=generator))
    hub = torch.rand(n, generator=generator) < hubs
    second = torch.where(hub[:, None], (views[1] + views[1].mean(dim=0)) / 2, views[1])
    extras = {"view": second, "latent": latent, "hub": hub}
    return Dataset("pairs", views[0], y, "classification", "vector", numbered(classes), extras)


def passages(
    generator: Generator,
    n: int = 3000,
    documents: int = 1000,
    entities: int = 50,
    dim: int = 64,
    noise: float = 0.5,
) -> Dataset:
    """Queries, each answered by one of many documents that state facts about entities.

    A document is about one of `entities` (document k about k mod entities) and gives 4 of 8 attributes one of
    12 values each. A query names the entity and 2 of the facts of the document that answers it; no other
    document has all three. Entities and facts have N(0, I) vectors in `dim` dimensions, others in queries
    than in documents: the two share no words. A document is the sum of its 5 vectors plus N(0, noise^2), a
    query that of its 3.

    x (n, dim) are the queries, y (n,) int64 the rows of `documents` (documents, dim). extras: "entity" (n,)
    and "facts" (n, 2) that the query names, a fact being 12 times the attribute plus the value. Raises
    `InputError` if chance does not make documents distinct.
    """
    at_least(2, n=n, documents=documents)
    at_least(1, entities=entities, dim=dim)
    at_least(0, noise=noise)
    about = torch.arange(documents) % entities
    attribute = torch.rand(documents, ATTRIBUTES, generator=generator).argsort(dim=1)[:, :4]
    stated = attribute * VALUES + torch.randint(VALUES, (documents, 4), generator=generator)
    states = torch.zeros(documents, ATTRIBUTES * VALUES, dtype=torch.bool).scatter(1, stated, True)
    y, facts = torch.empty(n, dtype=torch.int64), torch.empty(n, 2, dtype=torch.int64)
    open_ = torch.arange(n)
    for _ in range(100):
        y[open_] = torch.randint(documents, (len(open_),), generator=generator)
        which = torch.rand(len(open_), 4, generator=generator).argsort(dim=1)[:, :2]
        facts[open_] = stated[y[open_]].gather(1, which)
        fits = states[:, facts[open_, 0]] & states[:, facts[open_, 1]] & (about[:, None] == about[y[open_]])
        open_ = open_[fits.sum(dim=0) > 1]
        if not len(open_):
            break
    else:
        raise InputError(f"documents={documents} about entities={entities} are too alike to be told apart.")
    views = []
    for named_entity, named_facts in ((about, stated), (about[y], facts)):
        of_entity = torch.randn(entities, dim, generator=generator)
        of_fact = torch.randn(ATTRIBUTES * VALUES, dim, generator=generator)
        clean = of_entity[named_entity] + of_fact[named_facts].sum(dim=1)
        views.append(clean + noise * torch.randn(clean.shape, generator=generator))
    extras = {"entity": about[y], "facts": facts}
    return Dataset("passages", views[1], y, "search", "vector", extras=extras, documents=views[0])
