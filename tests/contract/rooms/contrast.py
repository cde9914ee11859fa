"""A valid call: `loss(embeddings, labels, **needs)`, `loss(view_a, view_b, **needs)` for retrieval, or
`loss(scores, target)` where labels are many. A search is fitted to scores of queries and all items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract.rooms import losses
from contract.samples import FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "views" in card.needs:
        return several_views(batch, normal, build)
    if "multilabel" in card.tasks:
        return losses.multilabel(batch, normal, g, build, device)
    if hasattr(card.build, "search"):
        return search(batch, normal, build)
    if card.tasks & {"retrieval", "reranking"}:
        return two_views(card, batch, normal, build, device)
    embeddings = normal(batch, FEATURES)
    labels = (torch.arange(batch) % 3).to(device)
    needs = {
        "features": lambda: normal(batch, 4, 3, 3),
        "ids": lambda: torch.arange(batch, device=device),
    }
    extra = {name: needs[name]() for name in card.needs}

    def call(part: Any, embeddings: Tensor) -> Tensor:
        return part(embeddings, labels, **extra)

    bad = {
        "embeddings of another rank": lambda p: p(embeddings[0], labels, **extra),
        "integer embeddings": lambda p: p(embeddings.long(), labels, **extra),
        "an empty batch": lambda p: p(embeddings[:0], labels[:0], **extra),
        "labels of another length": lambda p: p(embeddings, labels[:-1], **extra),
        "float labels": lambda p: p(embeddings, labels.double(), **extra),
    }
    return Sample(build, (embeddings,), call, bad)


def two_views(card, batch, normal, build, device) -> Sample:
    """A valid call of `loss(view_a, view_b, **needs)`."""
    a, b = normal(batch, FEATURES), normal(batch, FEATURES)
    extra = {name: torch.arange(batch, device=device) for name in card.needs}
    bad = {
        "a view of another rank": lambda p: p(a[0], b, **extra),
        "integer views": lambda p: p(a.long(), b.long(), **extra),
        "NaN": lambda p: p(a * float("nan"), b, **extra),
        "an empty batch": lambda p: p(a[:0], b[:0], **{k: v[:0] for k, v in extra.items()}),
        "views of other lengths": lambda p: p(a, torch.cat([b, b]), **extra),
    }
    return Sample(build, (a,), lambda part, a: part(a, b, **extra), bad)


def several_views(batch, normal, build) -> Sample:
    """A valid call of `loss(views)`; with two views also a valid one for losses of more."""
    views = normal(2, batch, FEATURES)
    bad = {
        "views of another rank": lambda p: p(views[0]),
        "one view": lambda p: p(views[:1]),
        "integer views": lambda p: p(views.long()),
        "NaN": lambda p: p(views * float("nan")),
        "an empty batch": lambda p: p(views[:, :0]),
    }
    return Sample(build, (views,), lambda part, views: part(views), bad)


def search(batch, normal, build) -> Sample:
    """A valid call of `search(score, k, budget)`; the budget is all items, so that the answer is exact."""
    known, scores = normal(120, 60), normal(batch, 60)

    def call(part: Any, scores: Tensor) -> Tensor:
        return part.search(lambda ids: scores.gather(1, ids.expand(len(scores), -1)), 3, 60).scores

    bad = {
        "a budget below the anchors": lambda p: p.search(lambda ids: scores[:, :50], 3, 50),
        "more than the budget asked for": lambda p: p.search(lambda ids: scores[:, :50], 70, 60),
        "another number of scores": lambda p: p.search(lambda ids: scores[:, :3], 3, 60),
        "NaN": lambda p: p.fit(known * float("nan")),
        "an empty batch": lambda p: p.fit(known[:0]),
        "fewer items than anchors": lambda p: p.fit(known[:, :20]),
    }
    return Sample(lambda: build().fit(known), (scores,), call, bad)
