"""What training minimises: the recipe's loss, plus its regularisers, each with what it needs of the batch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from logitkit import catalog
from logitkit.data.base import IGNORE, OF_PIXELS, OF_TOKENS
from logitkit.engine.network import Network, Shape, locate
from logitkit.engine.recipe import PartSpec, Recipe, card_of
from logitkit.engine.tasks import TASKS, in_bags
from logitkit.errors import InputError
from logitkit.heads import LinearHead
from logitkit.ops import random_views

# What terms may need beside scores and target.
KNOWN = {
    "ids", "model", "inputs", "features", "embeddings", "weight", "bias", "bags", "views", "teacher_logits",
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """x: preprocessed inputs, y: labels or standardised targets, ids: rows of the training set."""

    x: Tensor
    y: Tensor
    ids: Tensor


class Term(NamedTuple):
    """One summand: `weight * loss(of, target, **needs)`; `of` and `needs` name what the network put out (see
    `Outputs`) or what the batch holds."""

    loss: nn.Module
    weight: float = 1.0
    needs: tuple[str, ...] = ()
    of: str = "scores"


class Objective(nn.Module):
    """loss + sum of weight * regulariser + sum of lam * penalty, called on a network and a batch.

    Penalties are those of the backbone's layers: of every module with a method `penalty()` and a `lam` that
    is not 0.

    A module so that what losses keep (per-example weights, generators) travels in its `state_dict`.

    bag: how many rows in turn share a target; a batch holds whole bags.
    teacher_logits: the teacher's scores of all training rows, set before training; None without a teacher.
    """

    teacher_logits: Tensor | None = None

    def __init__(self, terms: list[Term], bag: int = 1) -> None:
        super().__init__()
        self._bag = bag
        self.losses = nn.ModuleList(term.loss for term in terms)
        self._terms = [(term.weight, term.needs, term.of) for term in terms]
        # Where no term looks at scores, they are not made: over very many classes they would fill the memory.
        self._of_scores = any(term.of in ("scores", "raw", "sequences") for term in terms)
        self._of_sequences = any(term.of == "sequences" for term in terms)
        self._of_layer = any("weight" in term.needs for term in terms)
        self._of_bags = any("bags" in term.needs for term in terms)
        wanted: list[Any] = [term.loss.views for term in terms if term.of == "views"]
        self._views: int = max(wanted, default=0)

    def forward(self, network: Network, batch: Batch) -> Tensor:
        target, ids, keep = batch.y, batch.ids, None
        if network.per_token:
            labels = network.labels(batch.y)
            length = labels.shape[1]
            target = labels.flatten(0, 1)
            ids = (length * batch.ids[:, None] + torch.arange(length, device=ids.device)).flatten()
            if not self._of_sequences:
                keep = _scored(target)
                target, ids = target[keep], ids[keep]
        known: dict[str, Any] = {"ids": ids, "model": network, "inputs": batch.x}
        if self._of_scores or network.head_takes_target:  # a head may learn from targets by itself
            known |= network.outputs(batch.x, target, keep)._asdict()
        else:
            known["features"], known["embeddings"] = network.hidden(batch.x, keep)
        if self._of_sequences:
            known["sequences"] = known["scores"].view(*batch.y.shape, -1)
        if self._of_layer:
            known |= {"weight": network.head.weight, "bias": network.head.bias}
        if self._of_bags:
            known["bags"], target = in_bags(target, self._bag)
        if self._views:
            views = random_views(batch.x, self._views)
            known["views"] = network.hidden(views.flatten(0, 1))[1].unflatten(0, views.shape[:2])
        total: Tensor | None = None
        if self.teacher_logits is not None:
            known["teacher_logits"] = self.teacher_logits[ids]
        for loss, (weight, needs, of) in zip(self.losses, self._terms, strict=True):
            labels = batch.y if of == "sequences" else target
            seen = known[of][: loss.views] if of == "views" else known[of]
            needed = {k: known[k] for k in needs}
            teacher = [needed.pop("teacher_logits")] if "teacher_logits" in needs else []
            value = loss(seen, *teacher, labels, **needed)
            value = value if weight == 1 else weight * value
            total = value if total is None else total + value
        assert total is not None
        layer: Any
        for layer in network.backbone.modules():
            if hasattr(type(layer), "penalty") and getattr(layer, "lam", None):
                total = total + layer.lam * layer.penalty()
        return total


def _scored(target: Tensor) -> Tensor:
    """(rows,) whether the label of a row is known, or one of the numbers (rows, pixels) that it holds."""
    if not target.is_floating_point():
        return target != IGNORE
    known = ~target.isnan()
    return known if target.ndim == 1 else known.any(dim=1)


class _OwnLoss(nn.Module):
    """The objective that a head or a normaliser brings, of its raw scores or, where its `loss_of` says so, of
    the embeddings; holds it without owning its parameters."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self._owner = (owner,)

    def forward(self, of: Tensor, target: Tensor) -> Tensor:
        return self._owner[0].loss(of, target)


def build_objective(recipe: Recipe, shape: Shape, network: Network) -> Objective:
    """The objective of `recipe`. Raises InputError for a loss that cannot take this task."""
    if not TASKS[shape.task].trains:
        return Objective([])
    owners = {"head": network.head, "softmax": network.normalizer}
    owner = next((slot for slot, module in owners.items() if hasattr(module, "loss")), None)
    if TASKS[shape.task].like == "bags":
        _check_bags(recipe, shape, network, owner)
    if recipe.loss.name != "auto" and owner is not None:
        raise InputError(
            f"{owner}={getattr(recipe, owner)} brings its own loss; leave out loss={recipe.loss}."
        )
    if recipe.loss.name != "auto":
        first = _term("loss", recipe.loss, shape, network)
    elif owner is not None:
        own = owners[owner]
        first = Term(_OwnLoss(own), of=getattr(own, "loss_of", "raw"))
    else:
        first = _term("loss", PartSpec.parse(TASKS[shape.task].loss), shape, network)
    terms = [first, *(_term("regularize", spec, shape, network) for spec in recipe.regularize)]
    _check_teacher(recipe)
    idle = all(term.of in ("embeddings", "views") and "weight" not in term.needs for term in terms)
    if idle and owner is None and shape.task != "retrieval" and not network.head_takes_target:
        raise InputError(
            f"loss={recipe.loss} trains embeddings and no last layer: add it to a loss, as in"
            f" regularize={recipe.loss}, or use data={recipe.data}+task=retrieval or head=naive_bayes."
        )
    plain = isinstance(network.head, LinearHead) and network.normalizer is None
    if not plain and any("weight" in term.needs for term in terms):
        raise InputError(
            f"a loss that works on the last layer's weight needs head=linear and softmax=softmax, not"
            f" head={recipe.head} and softmax={recipe.softmax}."
        )
    return Objective(terms, shape.bag)


def _check_teacher(recipe: Recipe) -> None:
    """Raise InputError for what learns from a teacher without one, and for a teacher without a learner."""
    learners, taught = recipe.learners, recipe.teacher.name != "none"
    if learners and not taught:
        raise InputError(
            f"{learners[0]} learns from a teacher: name its model, as in teacher=mlp(hidden=(256, 256))."
        )
    if taught and not learners:
        raise InputError(
            f"teacher={recipe.teacher} has nobody to teach: add a loss that learns from it, as in"
            " regularize=kd."
        )


def _check_bags(recipe: Recipe, shape: Shape, network: Network, owner: str | None) -> None:
    """Raise InputError for batches that would cut bags, and for what learns from the label of each row."""
    if recipe.batch_size % shape.bag:
        raise InputError(
            f"batch_size={recipe.batch_size} would cut bags of {shape.bag} rows; give a multiple of"
            f" {shape.bag}."
        )
    learner = "head" if network.head_takes_target else owner
    if learner is not None:
        raise InputError(
            f"{learner}={getattr(recipe, learner)} learns from the label of each row, and data={recipe.data}"
            " knows only the mean of each bag."
        )
    for slot, spec in (("loss", recipe.loss), *(("regularize", each) for each in recipe.regularize)):
        if ":" in spec.name:
            raise InputError(f"{slot}={spec} is your own code, which is not told bags; use loss=aggregate.")


def _term(slot: str, spec: PartSpec, shape: Shape, network: Network) -> Term:
    if ":" in spec.name:
        make = locate(spec.name, slot)
        takes = inspect.signature(make).parameters
        known = {k: v for k, v in shape.context().items() if k in takes}
        return Term(make(**known, **spec.kwargs), spec.weight)
    card = card_of(slot, spec)
    assert card is not None
    like = TASKS[shape.task].like
    binary = like == "classification" and shape.num_classes == 2 and "binary" in card.tasks
    able_to = {like, "sequence"} if shape.task in OF_TOKENS else {like}
    if not able_to & card.tasks and not binary:
        if "crowd" in card.tasks:
            raise InputError(f"{slot}={spec} makes labels of votes and is no loss: write votes={spec}.")
        if "depth" in card.tasks:
            raise InputError(f"{slot}={spec} makes outputs of codes and is no loss: write head={card.name}.")
        if "search" in card.tasks:
            raise InputError(f"{slot}={spec} finds documents and is no loss: write search={spec}.")
        if "reranking" in card.tasks:
            raise InputError(f"{slot}={spec} needs the scores of a ranker: write algorithm={spec}.")
        able = " or ".join(sorted(card.tasks))
        raise InputError(
            f"{slot}={spec} is for {able}; the data is a {shape.task} task with {shape.num_classes} outputs."
        )
    unknown = set(card.needs) - KNOWN
    if unknown:
        raise InputError(f"{slot}={spec} needs {', '.join(sorted(unknown))}, which comparisons do not have.")
    if "views" in card.needs and (shape.vocabulary is not None or shape.task in OF_PIXELS):
        raise InputError(
            f"{slot}={spec} compares views of whole images or of rows; the data is a {shape.task} task"
            f" {'on tokens' if shape.vocabulary is not None else 'on pixels'}."
        )
    backbone: Any = network.backbone
    place = shape.context(int(backbone.out_features))
    loss = catalog.create(card.room, card.name, **{**place, **spec.kwargs})
    if "views" in card.needs:
        return Term(loss, spec.weight, of="views")
    # Contrastive losses compare a batch's embeddings, unless their task has scores for every label.
    contrast = card.room == "contrast" and like == "classification"
    of = "embeddings" if contrast or "weight" in card.needs else "scores"
    of = "sequences" if shape.task in OF_TOKENS and "sequence" in card.tasks else of
    return Term(loss, spec.weight, card.needs, of)
