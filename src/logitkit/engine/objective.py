"""What training minimises: the recipe's loss, plus its regularisers, each with what it needs of the batch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from logitkit import catalog
from logitkit.engine.network import Network, Shape, locate
from logitkit.engine.recipe import PartSpec, Recipe, card_of
from logitkit.errors import InputError

AUTO = {"classification": "cross_entropy", "regression": "mse"}


@dataclass(frozen=True)
class Batch:
    """x: preprocessed inputs, y: labels or standardised targets, ids: rows of the training set."""

    x: Tensor
    y: Tensor
    ids: Tensor


class Objective(nn.Module):
    """loss + sum of weight * regulariser, called on a network and a batch.

    A module so that what losses keep (per-example weights, generators) travels in its `state_dict`.
    """

    def __init__(self, terms: list[tuple[nn.Module, float, tuple[str, ...]]]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(loss for loss, _, _ in terms)
        self._terms = [(weight, needs) for _, weight, needs in terms]

    def forward(self, network: Network, batch: Batch) -> Tensor:
        scores, features = network.with_features(batch.x, batch.y)
        known: dict[str, Any] = {"features": features, "ids": batch.ids, "model": network, "inputs": batch.x}
        total: Tensor | None = None
        for loss, (weight, needs) in zip(self.losses, self._terms, strict=True):
            value = loss(scores, batch.y, **{k: known[k] for k in needs})
            value = value if weight == 1 else weight * value
            total = value if total is None else total + value
        assert total is not None
        return total


class _HeadLoss(nn.Module):
    """The objective that a head brings; holds the head without owning its parameters."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = (head,)

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        return self._head[0].loss(scores, target)  # type: ignore[operator]


def build_objective(recipe: Recipe, shape: Shape, network: Network) -> Objective:
    """The objective of `recipe`. Raises InputError for a loss that cannot take this task."""
    brings_loss = hasattr(network.head, "loss")
    if recipe.loss.name != "auto" and brings_loss:
        raise InputError(f"head={recipe.head} brings its own loss; leave out loss={recipe.loss}.")
    if recipe.loss.name != "auto":
        first = _term("loss", recipe.loss, shape)
    elif brings_loss:
        first = (_HeadLoss(network.head), 1.0, ())
    else:
        first = _term("loss", PartSpec(name=AUTO[shape.task]), shape)
    return Objective([first, *(_term("regularize", spec, shape) for spec in recipe.regularize)])


def _term(slot: str, spec: PartSpec, shape: Shape) -> tuple[nn.Module, float, tuple[str, ...]]:
    if ":" in spec.name:
        make = locate(spec.name, slot)
        takes = inspect.signature(make).parameters
        known = {k: v for k, v in shape.context().items() if k in takes}
        return make(**known, **spec.kwargs), spec.weight, ()
    card = card_of(slot, spec)
    assert card is not None
    binary = shape.task == "classification" and shape.num_classes == 2 and "binary" in card.tasks
    if shape.task not in card.tasks and not binary:
        able = " or ".join(sorted(card.tasks))
        raise InputError(
            f"{slot}={spec} is for {able}; the data is a {shape.task} task with {shape.num_classes} outputs."
        )
    return catalog.create(card.room, card.name, **{**shape.context(), **spec.kwargs}), spec.weight, card.needs
