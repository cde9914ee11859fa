"""A valid call of bottleneck: objectives as in losses; `model(similarities)` on similarities to concepts."""

from __future__ import annotations

from contract.rooms import losses
from contract.samples import FEATURES, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "concepts" not in card.tasks:
        return losses.make(card, batch, normal, g, build, dtype, device)
    similarities = normal(batch, FEATURES)
    bad = {
        "similarities of another rank": lambda p: p(similarities[0]),
        "similarities to other concepts": lambda p: p(similarities[:, :-1]),
        "integer similarities": lambda p: p(similarities.long()),
        "NaN similarities": lambda p: p(similarities * float("nan")),
        "an empty batch": lambda p: p(similarities[:0]),
    }
    return Sample(build, (similarities,), lambda part, x: part(x)[1], bad)
