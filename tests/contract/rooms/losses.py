"""A valid call of losses: `loss(logits, target, **needs)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract.samples import CLASSES, FEATURES, Probe, Sample, context


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "multilabel" in card.tasks:
        return multilabel(batch, normal, g, build, device)
    if "weight" in card.needs:
        return of_the_last_layer(batch, normal, g, build, device)
    if "bags" in card.tasks:
        return bags(batch, normal, build, device)
    if "sequence" in card.tasks:
        return sequences(card, batch, normal, g, build, device)
    needs = {
        "features": lambda: normal(batch, 4, 3, 3),
        "ids": lambda: torch.arange(batch, device=device),
        "model": lambda: Probe(dtype).to(device),
        "inputs": lambda: normal(batch, 7),
        "embeddings": lambda: normal(batch, 6),
    }
    extra = {name: needs[name]() for name in card.needs}
    regression = card.tasks == {"regression"}
    classes = context(card)["num_classes"]
    logits = normal(batch, 1 if regression else classes)
    labels = torch.randint(0, classes, (batch,), generator=g).to(device)
    target = normal(batch) if regression else labels
    if "model" in extra:
        # The value depends on the inputs only through the model, so the logits stay the leaf.
        extra["inputs"] = extra["inputs"].detach()

    def call(part: Any, logits: Tensor) -> Tensor:
        return part(logits, target, **extra)

    bad = {
        "logits of another rank": lambda p: p(
            logits[0] if not regression else logits[None, None], target, **extra
        ),
        "integer logits": lambda p: p(logits.long(), target, **extra),
        "NaN logits": lambda p: p(logits * float("nan"), target, **extra),
        "an empty batch": lambda p: p(logits[:0], target[:0], **extra),
        "a target of another length": lambda p: p(logits, target[:-1], **extra),
    }
    if not regression:
        bad["a label out of range"] = lambda p: p(logits, target * 0 + 99, **extra)
        bad["float labels"] = lambda p: p(logits, target.double(), **extra)
    return Sample(build, (logits,), call, bad)


def multilabel(batch, normal, g, build, device) -> Sample:
    """A valid call of `loss(scores, target)`, with lists of labels."""
    scores = normal(batch, CLASSES)
    target = torch.rand(batch, CLASSES, generator=g).argsort(dim=1)[:, :2].to(device)
    target[::2, 1] = -1
    bad = {
        "scores of another rank": lambda p: p(scores[0], target),
        "integer scores": lambda p: p(scores.long(), target),
        "NaN scores": lambda p: p(scores * float("nan"), target),
        "an empty batch": lambda p: p(scores[:0], target[:0]),
        "a target of another length": lambda p: p(scores, target[:-1]),
        "a label out of range": lambda p: p(scores, target * 0 + 99),
        "a mask of another width": lambda p: p(scores, target >= 0),
    }
    return Sample(build, (scores,), lambda part, scores: part(scores, target), bad)


def bags(batch, normal, build, device) -> Sample:
    """A valid call of `loss(prediction, bag_targets, bags=ids)`, with bags of two."""
    prediction, ids = normal(batch, 1), torch.arange(batch, device=device) // 2
    target = normal((batch + 1) // 2)
    bad = {
        "a prediction of another rank": lambda p: p(prediction[0], target, bags=ids),
        "an integer prediction": lambda p: p(prediction.long(), target, bags=ids),
        "a NaN prediction": lambda p: p(prediction * float("nan"), target, bags=ids),
        "an empty batch": lambda p: p(prediction[:0], target, bags=ids[:0]),
        "a target of another length": lambda p: p(prediction, target[:-1], bags=ids),
        "bags of another length": lambda p: p(prediction, target, bags=ids[:-1]),
        "float bags": lambda p: p(prediction, target, bags=ids.double()),
    }
    return Sample(build, (prediction,), lambda part, x: part(x, target, bags=ids), bad)


def sequences(card, batch, normal, g, build, device) -> Sample:
    """A valid call of `loss(logits, labels, **needs)`, with a label at every time but some."""
    logits, time = normal(batch, 6, CLASSES), 6
    labels = torch.randint(0, CLASSES, (batch, time), generator=g).to(device)
    labels[:, 4:] = torch.where(torch.arange(batch, device=device)[:, None] % 2 == 0, -100, labels[:, 4:])
    needs = {"task_id": torch.arange(batch, device=device) % 3}
    extra = {name: needs[name] for name in card.needs}
    bad = {
        "logits of another rank": lambda p: p(logits[0], labels, **extra),
        "integer logits": lambda p: p(logits.long(), labels, **extra),
        "NaN logits": lambda p: p(logits * float("nan"), labels, **extra),
        "an empty batch": lambda p: p(logits[:0], labels[:0], **extra),
        "labels of another length": lambda p: p(logits, labels[:-1], **extra),
        "a label out of range": lambda p: p(logits, labels * 0 + 99, **extra),
        "float labels": lambda p: p(logits, labels.double(), **extra),
    }
    for name, value in extra.items():
        bad[f"{name} of another length"] = lambda p, name=name, value=value: p(
            logits, labels, **{**extra, name: value[:-1]}
        )
    return Sample(build, (logits,), lambda part, logits: part(logits, labels, **extra), bad)


def of_the_last_layer(batch, normal, g, build, device) -> Sample:
    """A valid call of `loss(features, target, weight, bias)`."""
    features, weight, bias = normal(batch, FEATURES), normal(CLASSES, FEATURES), normal(CLASSES)
    target = torch.randint(0, CLASSES, (batch,), generator=g).to(device)
    bad = {
        "features of another rank": lambda p: p(features[0], target, weight, bias),
        "features of another width": lambda p: p(features[:, 1:], target, weight, bias),
        "NaN features": lambda p: p(features * float("nan"), target, weight, bias),
        "an empty batch": lambda p: p(features[:0], target[:0], weight, bias),
        "a target of another length": lambda p: p(features, target[:-1], weight, bias),
        "a label out of range": lambda p: p(features, target * 0 + 99, weight, bias),
        "a bias of another length": lambda p: p(features, target, weight, bias[:-1]),
    }
    return Sample(build, (features,), lambda part, features: part(features, target, weight, bias), bad)
