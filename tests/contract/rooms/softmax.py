"""A valid call of softmax: `weights(scores)`."""

from __future__ import annotations

from contract.samples import CLASSES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    x = normal(batch, CLASSES)
    bad = {"integer scores": lambda p: p(x.long())}
    return Sample(build, (x,), lambda part, x: part(x), bad)
