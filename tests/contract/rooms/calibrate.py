"""A valid call of calibrate: `fit(logits, y)`, `transform(logits)`."""

from __future__ import annotations

from typing import Any

import torch

from contract.samples import CLASSES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
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
