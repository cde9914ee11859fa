"""A valid call of calibrate: `fit(logits, y)`, `transform(logits)`; for retrieval `fit(query_bank,
gallery_bank)`, `transform(similarities)`. Parts that need views take their logits as `views` in both.
For boxes `transform(boxes, scores, classes)`, without a fit."""

from __future__ import annotations

from typing import Any

import torch

from contract.samples import CLASSES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "retrieval" in card.tasks:
        return _retrieval(batch, normal, build)
    if "boxes" in card.tasks:
        return _boxes(batch, g, build, dtype, device)
    if "views" in card.needs:
        return _views(batch, normal, g, build, device)
    logits = normal(200, CLASSES) * 3
    y = torch.randint(0, CLASSES, (200,), generator=g).to(device)

    def fitted() -> Any:
        return build().fit(logits, y)

    bad = {
        "logits of another rank": lambda p: p.transform(logits[0]),
        "NaN logits": lambda p: p.transform(logits * float("nan")),
        "an empty batch to fit": lambda p: p.fit(logits[:0], y[:0]),
        "a label out of range to fit": lambda p: p.fit(logits, y + 99),
        "labels of another length to fit": lambda p: p.fit(logits, y[:-1]),
    }
    return Sample(fitted, (normal(batch, CLASSES),), lambda part, x: part.transform(x), bad)


def _retrieval(batch, normal, build) -> Sample:
    queries, items = normal(30, 9), normal(40, 9)
    similarities = normal(batch, 9)
    bad = {
        "similarities of another rank": lambda p: p.transform(similarities[0]),
        "similarities to another gallery": lambda p: p.transform(similarities[:, :-1]),
        "NaN similarities": lambda p: p.transform(similarities * float("nan")),
        "integer similarities": lambda p: p.transform(similarities.long()),
        "an empty bank to fit": lambda p: p.fit(queries[:0], items),
        "banks of two galleries to fit": lambda p: p.fit(queries, items[:, :-1]),
    }
    return Sample(
        lambda: build().fit(queries, items), (similarities,), lambda part, x: part.transform(x), bad
    )


def _boxes(batch, g, build, dtype, device) -> Sample:
    # whole numbers and 64ths, which are exact in every precision
    corner, side = (
        torch.randint(0, 20, (batch, 2), generator=g),
        torch.randint(5, 15, (batch, 2), generator=g),
    )
    boxes = torch.cat([corner, corner + side], dim=1).to(device, dtype)
    scores = (torch.randperm(batch, generator=g) + 1).to(device, dtype) / 64
    bad = {
        "boxes of another shape": lambda p: p.transform(boxes[:, :3], scores),
        "scores of another length": lambda p: p.transform(boxes, scores[:-1]),
        "integer scores": lambda p: p.transform(boxes, scores.long()),
        "negative scores": lambda p: p.transform(boxes, -scores),
        "corners in the wrong order": lambda p: p.transform(-boxes, scores),
    }
    return Sample(build, (scores, boxes), lambda part, s, b: part.transform(b, s), bad)


def _views(batch, normal, g, build, device) -> Sample:
    logits, views = normal(200, CLASSES) * 3, normal(4, 200, CLASSES)
    y = torch.randint(0, CLASSES, (200,), generator=g).to(device)

    def fitted() -> Any:
        part = build()
        part.steps = 20  # of its optimiser: the contract holds after few as after many
        return part.fit(logits, y, views=views)

    bad = {
        "NaN logits": lambda p: p.transform(logits * float("nan"), views=views),
        "views of other rows": lambda p: p.transform(logits, views=views[:, :-1]),
        "another number of views": lambda p: p.transform(logits, views=views[:2]),
        "NaN views": lambda p: p.transform(logits, views=views * float("nan")),
        "an empty batch to fit": lambda p: p.fit(logits[:0], y[:0], views=views[:, :0]),
        "a label out of range to fit": lambda p: p.fit(logits, y + 99, views=views),
    }
    return Sample(
        fitted,
        (normal(batch, CLASSES), normal(4, batch, CLASSES)),
        lambda part, x, seen: part.transform(x, views=seen),
        bad,
    )
