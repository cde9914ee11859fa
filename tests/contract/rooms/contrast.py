"""A valid call: `loss(embeddings, labels, **needs)`, or `loss(scores, target)` where labels are many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract.rooms import losses
from contract.samples import FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "multilabel" in card.tasks:
        return losses.multilabel(batch, normal, g, build, device)
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
