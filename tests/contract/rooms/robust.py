"""A valid call of robust: attacks `attack(model, x, y)`, and objectives as in losses."""

from __future__ import annotations

import torch

from contract.rooms import losses
from contract.samples import CLASSES, Probe, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "model" in card.needs:
        return losses.make(card, batch, normal, g, build, dtype, device)
    model, x = Probe(dtype).to(device), normal(batch, 7)
    y = torch.randint(0, CLASSES, (batch,), generator=g).to(device)
    bad = {
        "labels of another length": lambda p: p(model, x, y[:-1]),
        "an empty batch": lambda p: p(model, x[:0], y[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(model, x, y), bad)
