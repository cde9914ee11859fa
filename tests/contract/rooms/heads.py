"""A valid call of heads: `head(features)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contract.samples import FEATURES, Sample, context


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    features = normal(batch, FEATURES)
    target = torch.randint(0, context(card)["num_classes"], (batch,), generator=g).to(device)
    extra = {"target": target} if "target" in card.needs else {}

    examples, labels = normal(200, FEATURES), torch.arange(200, device=device) % context(card)["num_classes"]

    def fitted() -> Any:
        part = build()
        return part.fit(examples, labels) if hasattr(part, "fit") else part

    def call(part: Any, features: Tensor) -> Tensor:
        return part(features, **extra)

    bad = {
        "features of another rank": lambda p: p(features[0]),
        "features of another width": lambda p: p(features[:, :-1]),
        "integer features": lambda p: p(features.long()),
        "an empty batch": lambda p: p(features[:0]),
    }
    return Sample(fitted, (features,), call, bad)
