"""One valid call for a part of each room: how to build it, how to call it, and on what.

A room is described once; a new part in it is then covered without a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitkit import catalog
from logitkit.registry import Card

CLASSES, FEATURES, IMAGE = 5, 16, (1, 8, 8)


class Probe(nn.Module):
    """A smooth little network for objectives that attack a model."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            # drawn in float64: torch draws other numbers in other precisions
            self.linear = nn.Linear(7, CLASSES, dtype=torch.float64).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


@dataclass
class Sample:
    """`part = build()`, then `call(part, *inputs)`; `bad` are calls that must raise ValueError."""

    build: Callable[[], Any]
    inputs: tuple[Tensor, ...]
    call: Callable[..., Tensor]
    bad: dict[str, Callable[[Any], object]]


def context(card: Card) -> dict[str, Any]:
    classes = CLASSES if "classification" in card.tasks else 2 if "binary" in card.tasks else 1
    return {
        "in_features": FEATURES, "num_classes": classes, "num_samples": 256, "input_shape": IMAGE,
        "vmin": -3.0, "vmax": 3.0,
    }  # fmt: skip


def make(card: Card, batch: int = 6, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Sample:
    """A sample for the part on `card`; the same numbers whatever the dtype."""
    g = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    def build() -> Any:
        torch.manual_seed(0)
        made = catalog.create(card.room, card.name, **context(card))
        return made.to(device, dtype) if isinstance(made, nn.Module) else made

    maker = _ROOMS.get(card.room)
    if maker is None:
        raise NotImplementedError(f"tests/contract/samples.py has no sample for room {card.room!r} yet")
    return maker(card, batch, normal, g, build, dtype, device)


def _losses(card, batch, normal, g, build, dtype, device) -> Sample:
    needs = {
        "features": lambda: normal(batch, 4, 3, 3),
        "ids": lambda: torch.arange(batch, device=device),
        "model": lambda: Probe(dtype).to(device),
        "inputs": lambda: normal(batch, 7),
    }
    extra = {name: needs[name]() for name in card.needs}
    regression = card.tasks == {"regression"}
    classes = context(card)["num_classes"]
    logits = normal(batch, 1 if regression else classes)
    labels = torch.randint(0, classes, (batch,), generator=g).to(device)
    target = normal(batch) if regression else labels
    if "model" in extra:
        # The value depends on the inputs only through the model, so the logits stay the leaf.
        extra["inputs"] = extra["inputs"].detach()

    def call(part: Any, logits: Tensor) -> Tensor:
        return part(logits, target, **extra)

    bad = {
        "logits of another rank": lambda p: p(
            logits[0] if not regression else logits[None, None], target, **extra
        ),
        "integer logits": lambda p: p(logits.long(), target, **extra),
        "NaN logits": lambda p: p(logits * float("nan"), target, **extra),
        "an empty batch": lambda p: p(logits[:0], target[:0], **extra),
        "a target of another length": lambda p: p(logits, target[:-1], **extra),
    }
    if not regression:
        bad["a label out of range"] = lambda p: p(logits, target * 0 + 99, **extra)
        bad["float labels"] = lambda p: p(logits, target.double(), **extra)
    return Sample(build, (logits,), call, bad)


def _heads(card, batch, normal, g, build, dtype, device) -> Sample:
    features = normal(batch, FEATURES)
    target = torch.randint(0, context(card)["num_classes"], (batch,), generator=g).to(device)
    extra = {"target": target} if "target" in card.needs else {}

    def call(part: Any, features: Tensor) -> Tensor:
        return part(features, **extra)

    bad = {
        "features of another rank": lambda p: p(features[0]),
        "features of another width": lambda p: p(features[:, :-1]),
        "integer features": lambda p: p(features.long()),
        "an empty batch": lambda p: p(features[:0]),
    }
    return Sample(build, (features,), call, bad)


def _softmax(card, batch, normal, g, build, dtype, device) -> Sample:
    x = normal(batch, CLASSES)
    bad = {"integer scores": lambda p: p(x.long())}
    return Sample(build, (x,), lambda part, x: part(x), bad)


def _calibrate(card, batch, normal, g, build, dtype, device) -> Sample:
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


def _detect(card, batch, normal, g, build, dtype, device) -> Sample:
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


def _models(card, batch, normal, g, build, dtype, device) -> Sample:
    x = normal(batch, *IMAGE)
    bad = {
        "inputs of another shape": lambda p: p(x[:, :, :-1]),
        "integer inputs": lambda p: p(x.long()),
        "an empty batch": lambda p: p(x[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(x), bad)


def _robust(card, batch, normal, g, build, dtype, device) -> Sample:
    if "model" in card.needs:
        return _losses(card, batch, normal, g, build, dtype, device)
    model, x = Probe(dtype).to(device), normal(batch, 7)
    y = torch.randint(0, CLASSES, (batch,), generator=g).to(device)
    bad = {
        "labels of another length": lambda p: p(model, x, y[:-1]),
        "an empty batch": lambda p: p(model, x[:0], y[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(model, x, y), bad)


_ROOMS = {
    "losses": _losses, "heads": _heads, "softmax": _softmax, "calibrate": _calibrate, "detect": _detect,
    "models": _models, "robust": _robust,
}  # fmt: skip
