"""A valid call of detect: `fit(x, y)`, `score(x)`."""

from __future__ import annotations

from typing import Any

import torch

from contract.samples import CLASSES, FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    width = CLASSES if "logits" in card.needs else FEATURES
    x = normal(200, width)
    y = torch.arange(200, device=device) % CLASSES

    def fitted() -> Any:
        return build().fit(x, y)

    bad = {
        "scores of another rank": lambda p: p.score(x[0]),
        "NaN": lambda p: p.score(x * float("nan")),
        "an empty batch to score": lambda p: p.score(x[:0]),
    }
    return Sample(fitted, (normal(batch, width),), lambda part, x: part.score(x), bad)
