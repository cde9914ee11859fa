"""A valid call: `loss(student_logits, teacher_logits, target)`, or of a student that is its own teacher
`loss(student_logits, target, **needs)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract.samples import CLASSES, FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    logits, teacher, embeddings = normal(batch, CLASSES), normal(batch, CLASSES), normal(batch, FEATURES)
    target = torch.randint(0, CLASSES, (batch,), generator=g).to(device)
    taught = "teacher_logits" in card.needs

    def call(part: Any, logits: Tensor, target: Tensor = target, other: Tensor | None = None) -> Tensor:
        if taught:
            return part(logits, teacher[: len(logits)] if other is None else other, target)
        return part(logits, target, embeddings[: len(logits)] if other is None else other)

    of = teacher if taught else embeddings
    bad = {
        "logits of another rank": lambda p: call(p, logits[0]),
        "integer logits": lambda p: call(p, logits.long()),
        "NaN logits": lambda p: call(p, logits * float("nan")),
        "an empty batch": lambda p: call(p, logits[:0], target[:0]),
        "a target of another length": lambda p: call(p, logits, target[:-1]),
        "a label out of range": lambda p: call(p, logits, target * 0 + 99),
        "float labels": lambda p: call(p, logits, target.double()),
        "a teacher or embeddings of another length": lambda p: call(p, logits, target, of[:-1]),
        "a teacher or embeddings of another width": lambda p: call(p, logits, target, of[:, :-1]),
        "an integer teacher or embeddings": lambda p: call(p, logits, target, of.long()),
    }
    return Sample(build, (logits,), call, bad)
