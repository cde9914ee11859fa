"""A valid call of adapt; objectives of unlearning: `loss(forget_logits, forget_labels, template_logits,
template_labels)`."""

from __future__ import annotations

import torch

from contract.samples import CLASSES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    return unlearning(batch, normal, g, build, device)


def unlearning(batch, normal, g, build, device) -> Sample:
    """A valid call of two answers to each prompt."""
    forget, template = normal(batch, 6, CLASSES), normal(batch, 4, CLASSES)
    labels = torch.randint(0, CLASSES, (batch, 6), generator=g).to(device)
    labels[:, :2] = -100
    others = labels[:, 2:]
    bad = {
        "logits of another rank": lambda p: p(forget[0], labels, template, others),
        "integer logits": lambda p: p(forget.long(), labels, template, others),
        "NaN logits": lambda p: p(forget, labels, template * float("nan"), others),
        "an empty batch": lambda p: p(forget[:0], labels[:0], template, others),
        "labels of another length": lambda p: p(forget, labels[:, :-1], template, others),
        "a label out of range": lambda p: p(forget, labels, template, others * 0 + 99),
        "float labels": lambda p: p(forget, labels.double(), template, others),
    }
    return Sample(build, (forget,), lambda part, x: part(x, labels, template, others), bad)
