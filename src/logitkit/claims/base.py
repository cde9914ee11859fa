"""What a claim is: an experiment with thresholds set beforehand, and the evidence it leaves."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from logitkit import catalog, data
from logitkit.engine import Diverged, Prepared, Recipe, RunResult, Trainer
from logitkit.engine import run as run_recipe
from logitkit.engine.inference import forward
from logitkit.engine.run import isolated
from logitkit.engine.train import Progress
from logitkit.errors import InputError

Relation = Literal[">=", "<=", ">", "<"]
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass(frozen=True)
class Check:
    """One thresholded statement of a claim.

    statement: what was compared, in words a reader understands without the code.
    measured:  the number, a mean over seeds unless the statement says otherwise.
    relation, threshold: it holds if `measured relation threshold`; NaN never holds.
    low, high: 95 % interval of `measured` over seeds (t), None if it is not a mean over seeds.
    arms:      the numbers per arm, one per seed.
    """

    statement: str
    measured: float
    relation: Relation
    threshold: float
    low: float | None = None
    high: float | None = None
    arms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return _RELATIONS[self.relation](self.measured, self.threshold)


def over_seeds(
    statement: str,
    values: Sequence[float],
    relation: Relation,
    threshold: float,
    arms: Mapping[str, Sequence[float]],
) -> Check:
    """A check of the mean of one value per seed."""
    x = np.asarray(values, dtype=float)
    low = high = None
    if len(x) > 1:
        half = float(stats.t.ppf(0.975, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
        low, high = float(x.mean()) - half, float(x.mean()) + half
    listed = {name: [float(v) for v in arm] for name, arm in arms.items()}
    return Check(statement, float(x.mean()), relation, threshold, low, high, listed)


def difference(statement: str, relation: Relation, threshold: float, **arms: Sequence[float]) -> Check:
    """A check of the mean over seeds of first arm minus second arm; further arms are only reported."""
    first, second = list(arms.values())[:2]
    return over_seeds(statement, np.subtract(first, second).tolist(), relation, threshold, dict(arms))


def ratio(statement: str, relation: Relation, threshold: float, **arms: Sequence[float]) -> Check:
    """A check of mean of the first arm over mean of the second, each a mean over seeds."""
    first, second = list(arms.values())[:2]
    listed = {name: [float(v) for v in arm] for name, arm in arms.items()}
    return Check(statement, float(np.mean(first) / np.mean(second)), relation, threshold, arms=listed)


@dataclass(frozen=True)
class Trial:
    """What a claim runs with: its seeds, and whether this is a quick run that only shows that it runs."""

    seeds: tuple[int, ...]
    quick: bool = False

    def few(self, full: int, quick: int) -> int:
        """`full`, or `quick` in a quick run: for epochs, tasks, examples."""
        return quick if self.quick else full

    def best(self, choices: Sequence[float], score: Callable[[float], float]) -> float:
        """The choice with the highest score, for a grid that every arm gets; the first in a quick run."""
        return choices[0] if self.quick else max(choices, key=score)

    def run(self, seed: int, dataset: data.Dataset | None = None, **settings: Any) -> RunResult:
        """Train a recipe through the engine with this seed and the split of the same number.

        In a quick run it gets at most 2 epochs (or 40 steps).
        """
        recipe = Recipe.of(**settings, seed=seed, split_seed=seed)
        prepared = Prepared.of(data.split(dataset if dataset is not None else data.load(recipe.data), seed))
        return self.run_on(prepared, recipe)

    def run_on(self, prepared: Prepared, recipe: Recipe) -> RunResult:
        """The same on a split made by the claim."""
        return run_recipe(self._affordable(recipe), prepared)

    def train(
        self, prepared: Prepared, recipe: Recipe, on_epoch: Callable[[Trainer], None] | None = None
    ) -> Trainer:
        """Train without judging, for a claim that looks at the trainer's network or objective.

        on_epoch: called after each epoch, with the network in evaluation mode. Raises `Diverged`.
        """

        def look(_: Progress) -> None:
            if on_epoch is not None:
                trainer.network.eval()
                on_epoch(trainer)
                trainer.network.train()

        with isolated(recipe.threads):
            trainer = Trainer(self._affordable(recipe), prepared, on_epoch=look)
            trainer.run()
        return trainer

    def tuned(self, prepared: Prepared, recipes: Sequence[Recipe]) -> Trainer:
        """The trained recipe with the highest validation score at its end; the first of several.

        In a quick run only the first two are tried. Raises `Diverged` if every one diverges.
        """
        found: list[Trainer] = []
        for recipe in recipes[: self.few(len(recipes), 2)]:
            with contextlib.suppress(Diverged):
                found.append(self.train(prepared, recipe))
        if not found:
            raise Diverged(f"all of {len(recipes)} recipes diverged, the last {recipes[-1].loss}")
        return max(found, key=lambda trainer: trainer.progress.curve[-1]["val_score"])

    def _affordable(self, recipe: Recipe) -> Recipe:
        if not self.quick:
            return recipe
        steps = min(recipe.steps, 40) if recipe.steps else None
        return recipe.model_copy(update={"epochs": min(recipe.epochs, 2), "steps": steps})


def accuracy(network: nn.Module, rows: tuple[Tensor, Tensor], k: int = 1) -> float:
    """Percent of rows (x, y) whose label is among the k highest scores."""
    x, y = rows
    return 100 * (forward(network, x).topk(k).indices == y[:, None]).any(1).double().mean().item()


@dataclass(frozen=True)
class Claim:
    """A registered claim; see `claim`."""

    room: str
    part: str
    statement: str
    seeds: tuple[int, ...]
    note: str | None
    experiment: Callable[[Trial], list[Check]]


_claims: dict[tuple[str, str], Claim] = {}


def claim(
    room: str, part: str, *, statement: str, seeds: Sequence[int], note: str | None = None
) -> Callable[[Callable[[Trial], list[Check]]], Callable[[Trial], list[Check]]]:
    """Register the decorated experiment as the claim of part `room/part`.

    statement: the paper's headline effect, at this scale, in one sentence.
    seeds:     every one is run; the thresholds stand in the experiment, set before looking.
    note:      shown only when the claim does not hold: why it may not, at this scale.
    """

    def register(experiment: Callable[[Trial], list[Check]]) -> Callable[[Trial], list[Check]]:
        _claims[room, part] = Claim(room, part, statement, tuple(seeds), note, experiment)
        return experiment

    return register


@dataclass(frozen=True)
class Evidence:
    """What a claim's run showed; `holds` if every check does."""

    room: str
    part: str
    number: int | None
    statement: str
    seeds: tuple[int, ...]
    checks: tuple[Check, ...]
    seconds: float
    versions: dict[str, str]
    machine: str
    quick: bool
    note: str | None = None

    @property
    def holds(self) -> bool:
        return all(c.holds for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, `holds` included."""
        return {
            **{k: v for k, v in vars(self).items() if k not in ("checks", "seeds", "note")},
            "seeds": list(self.seeds),
            "holds": self.holds,
            "note": None if self.holds else self.note,
            "checks": [{**vars(c), "holds": c.holds} for c in self.checks],
        }


def keep_classes(dataset: data.Dataset, classes: range) -> data.Dataset:
    """The rows of some consecutive classes, which become 0, 1, ..."""
    kept = dataset.take(((dataset.y >= classes.start) & (dataset.y < classes.stop)).nonzero().flatten())
    names = dataset.class_names
    return replace(kept, y=kept.y - classes.start, class_names=names and names[classes.start : classes.stop])


def pixel_limits(prepared: Prepared) -> tuple[float, float]:
    """Black and white pixels of grey images, as the network sees them after standardisation."""
    black, white = (
        prepared.preprocessor.transform(torch.full((1, *prepared.shape.input_shape), v)) for v in (0.0, 1.0)
    )
    return float(black.min()), float(white.max())


def registered() -> dict[tuple[str, str], Claim]:
    """Every claim imported so far, by room and part."""
    return _claims


def quick(found: Claim) -> Claim:
    """The claim on its first seed only."""
    return replace(found, seeds=found.seeds[:1])


def part_number(found: Claim) -> int | None:
    """The number of the claim's paper, None if it is off the list. Raises InputError for a reference part."""
    card = catalog.get(found.room, found.part)
    if card.reference:
        raise InputError(f"{found.room}/{found.part} is a reference part and makes no claim.")
    return card.number
