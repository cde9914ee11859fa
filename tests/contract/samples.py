"""One valid call for a part of each room: how to build it, how to call it, and on what.

A room is described once, in `tests/contract/rooms/<room>.py`; a new part in it needs no line there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitkit import catalog
from logitkit.registry import Card

CLASSES, FEATURES, IMAGE = 5, 16, (1, 8, 8)
TOKENS, VOCABULARY = 7, 11
GRID = 2, 4
# what a part of layers is told, by the layer that it stands in for
LAYERS: dict[str, dict[str, Any]] = {
    "norm": {"dim": FEATURES},
    "mlp": {"dim": FEATURES, "hidden": 24},
    "norm+mlp": {"dim": FEATURES, "hidden": 24},
    "mixer": {"dim": FEATURES, "grid": GRID},
    "block": {"channels": 8},
    "linear": {"in_features": FEATURES, "out_features": CLASSES},
    "conv": {"in_channels": 3, "out_channels": 4, "kernel_size": 3},
}


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
    if card.room == "layers":
        return LAYERS[card.replaces or ""]
    many = {"classification", "multilabel", "crowd"}
    classes = CLASSES if card.tasks & many else 2 if "binary" in card.tasks else 1
    place = {
        "in_features": FEATURES, "num_classes": classes, "num_samples": 256, "num_tasks": 3,
        "num_concepts": FEATURES,
        "class_names": [f"class {k}" for k in range(classes)], "input_shape": IMAGE,
        "vmin": -3.0, "vmax": 3.0, "embed_dim": FEATURES, "num_heads": 4, "grid": GRID,
        "max_len": GRID[0] * GRID[1], "n_ref": GRID[0] * GRID[1],
        "documents": torch.linspace(-2, 2, 4 * CLASSES).sin().view(CLASSES, 4),
        "pixels": 4,
    }  # fmt: skip
    if reads_tokens(card):
        place |= {"input_shape": (TOKENS,), "vocabulary": VOCABULARY}
    return place


def reads_tokens(card: Card) -> bool:
    return "vocabulary" in inspect.signature(card.build).parameters


def make(card: Card, batch: int = 6, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Sample:
    """A sample for the part on `card`; the same numbers whatever the dtype."""
    g = torch.Generator().manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    def build() -> Any:
        torch.manual_seed(0)
        made = catalog.create(card.room, card.name, **context(card))
        return made.to(device, dtype) if isinstance(made, nn.Module) else made

    room = importlib.import_module(f"contract.rooms.{card.room}")
    return room.make(card, batch, normal, g, build, dtype, device)
