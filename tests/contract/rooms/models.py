"""A valid call of models: `model(x)`."""

from __future__ import annotations

from contract.samples import IMAGE, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    x = normal(batch, *IMAGE)
    bad = {
        "inputs of another shape": lambda p: p(x[:, :, :-1]),
        "integer inputs": lambda p: p(x.long()),
        "an empty batch": lambda p: p(x[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(x), bad)
