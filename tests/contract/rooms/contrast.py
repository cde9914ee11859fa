"""A valid call of contrast: `loss(embeddings, labels)`, or `loss(scores, target)` with several labels."""

from __future__ import annotations

from contract.rooms import losses
from contract.samples import Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "multilabel" in card.tasks:
        return losses.multilabel(batch, normal, g, build, device)
    raise NotImplementedError(f"no sample for {card.name} yet")
