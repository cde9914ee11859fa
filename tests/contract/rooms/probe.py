"""A valid call of probe: `estimator(t, y, x)`, bits of a layer's output, which tells little of few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from contract.samples import FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    rows = max(batch, 40)
    x = normal(rows, FEATURES)
    # twice the noise: bfloat16 has few different values, and rows that repeat have no entropy
    t = torch.tanh(x[:, :8] + 2 * normal(rows, 8))
    y = (torch.arange(rows) % 3).to(device)

    def made():
        part = build()
        return part.fit(x) if hasattr(part, "fit") else part

    def call(part, t: Tensor) -> Tensor:
        return torch.tensor(part(t, y, x), dtype=torch.float64)

    bad = {
        "a layer of another rank": lambda p: p(t[:, 0], y, x),
        "integers": lambda p: p((10 * t).long(), y, x),
        "NaN": lambda p: p(t * float("nan"), y, x),
        "infinite values": lambda p: p(t / 0, y, x),
        "no rows": lambda p: p(t[:0], y[:0], x[:0]),
        "labels of another length": lambda p: p(t, y[:-1], x),
        "float labels": lambda p: p(t, y.double(), x),
        "negative labels": lambda p: p(t, y - 1, x),
    }
    return Sample(made, (t,), call, bad)
