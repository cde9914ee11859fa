"""A valid call of adapt: `segment(support, masks, query)` for few-shot segmentation; `loss(forget_logits,
forget_labels, **needs)` for unlearning."""

from __future__ import annotations

import math

import torch

from contract.samples import CLASSES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "segmentation" in card.tasks:
        return few_shot(batch, normal, build, device)
    return unlearning(card, batch, normal, g, build, device)


def few_shot(batch, normal, build, device) -> Sample:
    """A valid call of two labelled images and one more for each task."""
    support, query = normal(batch, 2, 4, 5, 5), normal(batch, 4, 5, 5)
    masks = torch.zeros(batch, 2, 10, 10, dtype=torch.int64, device=device)
    masks[:, :, 2:6, 3:8] = 1
    masks[:, 1, 8:] = 255
    bad = {
        "support of another rank": lambda p: p.segment(support[0], masks, query),
        "a query of another size": lambda p: p.segment(support, masks, query[..., :-1]),
        "NaN": lambda p: p.segment(support, masks, query * float("nan")),
        "integer features": lambda p: p.segment(support.long(), masks, query),
        "an empty batch": lambda p: p.segment(support[:0], masks[:0], query[:0]),
        "masks of another length": lambda p: p.segment(support, masks[:-1], query),
        "other mask values": lambda p: p.segment(support, masks + 1, query),
        "no foreground": lambda p: p.segment(support, masks * 0, query),
    }
    return Sample(build, (support,), lambda part, support: part.segment(support, masks, query), bad)


def unlearning(card, batch, normal, g, build, device) -> Sample:
    """A valid call of two answers to each prompt, and what else the part needs."""
    forget, template = normal(batch, 6, CLASSES), normal(batch, 4, CLASSES)
    labels = torch.randint(0, CLASSES, (batch, 6), generator=g).to(device)
    labels[:, :2] = -100
    others = labels[:, 2:]
    known = {
        "template_logits": template, "template_labels": others, "retain_logits": template,
        "retain_labels": others, "forget_reference": normal(batch, 6, CLASSES),
        "template_reference": normal(batch, 4, CLASSES),
    }  # fmt: skip

    def call(part, logits, labels=labels, **other):
        return part(logits, labels, **{key: {**known, **other}[key] for key in card.needs})

    bad = {
        "logits of another rank": lambda p: call(p, forget[0]),
        "integer logits": lambda p: call(p, forget.long()),
        "NaN logits": lambda p: call(p, forget * float("nan")),
        "an empty batch": lambda p: call(p, forget[:0], labels[:0]),
        "labels of another length": lambda p: call(p, forget, labels[:, :-1]),
        "a label out of range": lambda p: call(p, forget, labels * 0 + 99),
        "float labels": lambda p: call(p, forget, labels.double()),
    }
    for kind in ("template", "retain"):
        if f"{kind}_logits" in card.needs:
            bad |= {
                f"NaN {kind} logits": lambda p, k=f"{kind}_logits": call(
                    p, forget, **{k: template * math.nan}
                ),
                f"a {kind} label out of range": lambda p, k=f"{kind}_labels": call(
                    p, forget, **{k: others * 0 + 99}
                ),
            }
    return Sample(build, (forget,), call, bad)
