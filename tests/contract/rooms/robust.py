"""A valid call of robust: attacks `attack(model, x, y)`, objectives as in losses, and for crowds
`fit(votes)`, `transform(votes)`."""

from __future__ import annotations

import torch

from contract.rooms import losses
from contract.samples import CLASSES, Probe, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "model" in card.needs:
        return losses.make(card, batch, normal, g, build, dtype, device)
    if "crowd" in card.tasks:
        return _crowd(batch, g, build, device)
    model, x = Probe(dtype).to(device), normal(batch, 7)
    y = torch.randint(0, CLASSES, (batch,), generator=g).to(device)
    bad = {
        "labels of another length": lambda p: p(model, x, y[:-1]),
        "an empty batch": lambda p: p(model, x[:0], y[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(model, x, y), bad)


def _crowd(batch, g, build, device) -> Sample:
    answers, votes = (torch.randint(-1, CLASSES, (n, 12), generator=g).to(device) for n in (200, batch))
    bad = {
        "votes of another rank": lambda p: p.transform(votes[0]),
        "votes of other workers": lambda p: p.transform(votes[:, :-1]),
        "votes that are no class": lambda p: p.transform(votes + 99),
        "float votes": lambda p: p.transform(votes.double()),
        "no items": lambda p: p.fit(answers[:0]),
    }
    return Sample(lambda: build().fit(answers), (votes,), lambda part, x: part.transform(x), bad)
