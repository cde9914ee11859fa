"""From what the user writes to the runs it takes: recipes x seeds, each with a key."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import logitkit
from logitkit import data
from logitkit.data.base import IGNORE
from logitkit.engine.network import locate
from logitkit.engine.recipe import SLOTS, PartSpec, Recipe, literal, split_outside
from logitkit.engine.tasks import TASKS, check_metric, task_of
from logitkit.engine.train import Prepared
from logitkit.errors import InputError, nearest

SETTINGS = {"seeds", "tune", "metric"}
SHARES = ("accuracy", "p@1", "r@", "selectivity", "retained", "known", "template", "map_exact")


@dataclass(frozen=True)
class Run:
    """One recipe on one seed; `key` is the same wherever and whenever the same run is asked for."""

    arm: int
    seed: int
    recipe: Recipe
    key: str


@dataclass(frozen=True)
class Plan:
    """What a comparison will do.

    arms:    the recipes, the first being the reference of every difference.
    labels:  what tells each arm from the others, e.g. `"loss=ldr"`.
    seeds:   how many seeds; seed s also chooses split s.
    tune:    tuning trials per recipe and seed, judged on validation only.
    metric:  what the ranking is by.
    """

    dataset: data.Dataset
    arms: tuple[Recipe, ...]
    labels: tuple[str, ...]
    varied: tuple[str, ...]
    seeds: int
    tune: int
    metric: str

    @property
    def higher_is_better(self) -> bool:
        return TASKS[self.dataset.task].metrics[self.metric]

    @cached_property
    def runs(self) -> list[Run]:
        """Every run, seeds outermost, so that a partial ranking already compares like with like."""
        found = []
        for seed, arm in itertools.product(range(self.seeds), range(len(self.arms))):
            recipe = self.arms[arm].model_copy(update={"seed": seed, "split_seed": seed})
            text = json.dumps(
                [
                    recipe.hash,
                    self.tune,
                    self.metric if self.tune else "",
                    self.dataset.fingerprint,
                    code_digest(),
                    _own_code(recipe),
                ]
            )
            found.append(Run(arm, seed, recipe, hashlib.sha256(text.encode()).hexdigest()[:32]))
        return found

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        split = data.split(self.dataset, 0)
        return len(split.test), len(split.train) + len(split.val)

    @property
    def test_to_train(self) -> float:
        """Test rows over all the rows that a run learns from (training and validation)."""
        return self._sizes[0] / self._sizes[1]

    @property
    def resolution(self) -> float:
        """Smallest step of the metric: one test row for a share of rows, 0 for a continuous metric."""
        counted = self.metric.startswith("r@") or any(name in self.metric for name in SHARES)
        return 1 / self._sizes[0] if counted else 0.0


@cache
def code_digest() -> str:
    """A digest of logitkit's own source: results of another version are not mistaken for this one's."""
    digest = hashlib.sha256()
    root = Path(logitkit.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in ("cli", "report", "claims", "integrations"):
            continue
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _own_code(recipe: Recipe) -> list[str]:
    """Digests of the files that hold the user's own code, so that an edit means new runs."""
    import inspect

    found = []
    for slot in SLOTS:
        value = getattr(recipe, slot)
        for spec in value if isinstance(value, tuple) else (value,):
            if ":" in spec.name:
                try:
                    file = inspect.getsourcefile(locate(spec.name, slot))
                except TypeError:
                    file = None
                found.append(hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else spec.name)
    return found


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """`["loss=ce,ldr", "data=digits"]` -> a dictionary. Raises InputError for a word without `=`."""
    settings: dict[str, Any] = {}
    for word in words:
        key, sep, value = word.partition("=")
        if not sep or not key or not value:
            raise InputError(f"cannot read {word!r}: write slot=value, for example loss=ce,ldr.")
        if key in settings:
            raise InputError(f"{key}= is given twice; write {key}={settings[key]},{value} to compare both.")
        settings[key] = value
    return settings


def make_plan(
    settings: Mapping[str, Any], *, seeds: int | str = 5, tune: int | str = 0, metric: str | None = None
) -> Plan:
    """A plan from recipe settings, each one value or several (a list, or text with commas).

    Without any setting that varies, the default comparison of losses. Raises InputError for unknown
    settings, parts or data, impossible numbers, and parts that cannot take the data.
    """
    settings = dict(settings)
    seeds, tune = _whole("seeds", seeds, 1), _whole("tune", tune, 0)
    for key in settings:
        if key not in Recipe.model_fields:
            known = [*Recipe.model_fields, *SETTINGS]
            raise InputError(
                f"there is no slot or setting {key!r}.{nearest(key, known)} Slots: {', '.join(SLOTS)}."
            )
        if key in ("seed", "split_seed"):
            raise InputError(
                f"{key}= cannot be set in a comparison; seeds={seeds} runs seeds 0 to {seeds - 1}."
            )
    source = settings.pop("data", "digits")
    dataset = data.load(source)
    task = task_of(dataset)
    metric = check_metric(metric, dataset.task)
    slot, _, choices = task.compared.partition("=")
    if tune and not task.trains:
        raise InputError(
            f"tune={tune}: data={dataset.name} is a {dataset.task} task, which trains nothing; list the"
            f" settings to compare, {slot}=part(setting=1),part(setting=2)."
        )
    values = {key: _values(key, value) for key, value in settings.items()}
    if not any(len(v) > 1 for v in values.values()) and slot not in values:
        values[slot] = _values(slot, choices)
    values.setdefault("head", [task.head])
    varied = tuple(key for key, v in values.items() if len(v) > 1)
    arms, labels = [], []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        arms.append(Recipe.of(data=dataset.name, **chosen).canonical())
        named = ", ".join(f"{key}={_short(chosen[key])}" for key in varied)
        labels.append(named or f"{slot}={_shown(getattr(arms[-1], slot))}")
    if any(arm.learners for arm in arms):  # the arms beside them that learn from no teacher have none
        none = {"teacher": Recipe.model_fields["teacher"].default}
        arms = [arm if arm.learners else arm.model_copy(update=none) for arm in arms]
    if len({arm.hash for arm in arms}) < len(arms):
        raise InputError("two of the recipes to compare are the same; leave one out.")
    prepared = Prepared.of(data.split(dataset, 0))
    for arm in arms:
        check_fit(arm, prepared)
    if "exact" in metric and bool((prepared.test[1] != IGNORE).all()):
        raise InputError(
            f"metric={metric!r} is of prompts and answers; data={dataset.name} scores every token."
        )
    return Plan(dataset, tuple(arms), tuple(labels), varied, seeds, tune, metric)


def check_fit(recipe: Recipe, prepared: Prepared) -> None:
    """Build the recipe once and throw it away, so that what cannot work is said before anything runs."""
    import torch

    from logitkit.engine.network import build_network
    from logitkit.engine.objective import build_objective
    from logitkit.engine.predictor import build_adapter, build_calibrators, build_detector
    from logitkit.engine.train import build_algorithm, build_optimizer, build_votes

    with torch.random.fork_rng():
        network = build_network(recipe, prepared.shape)
        objective = build_objective(recipe, prepared.shape, network)
        build_optimizer(recipe, [*network.parameters(), *objective.parameters()])
        build_algorithm(recipe, prepared.shape, network)
        build_votes(recipe, prepared.shape)
        build_adapter(recipe, prepared.shape)
        build_calibrators(recipe, prepared.shape)
        if TASKS[prepared.shape.task].detects:
            build_detector(recipe.detect, prepared.shape)
    if recipe.teacher.name != "none":
        try:
            check_fit(recipe.of_teacher(), prepared)
        except InputError as error:
            raise InputError(f"teacher={recipe.teacher}: {error}") from error


def _values(key: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        value = split_outside(value)
        return value if key in SLOTS else [literal(v) for v in value]
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"{key}= has no value.")
        return list(value)
    return [value]


def _shown(value: Any) -> str:
    return " + ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _short(value: Any) -> str:
    return str(PartSpec.parse(value)) if callable(value) else str(value)


def _whole(name: str, value: int | str, least: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if isinstance(value, bool | float) or number < least:
        raise InputError(f"{name}={value} is not possible: expected a whole number of at least {least}.")
    return number
