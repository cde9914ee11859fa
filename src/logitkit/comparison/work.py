"""Doing the runs of a plan: claim one, tune it if asked, train, judge, record; until none is left."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from logitkit import data
from logitkit.comparison.plan import Plan, Run
from logitkit.comparison.store import Store
from logitkit.engine.checkpoint import save_state
from logitkit.engine.recipe import SLOTS, PartSpec, Recipe, card_of
from logitkit.engine.run import RunResult, run
from logitkit.engine.tasks import Task, task_of
from logitkit.engine.train import Prepared, Progress
from logitkit.errors import InputError
from logitkit.registry import Choice, Real, Whole

Listener = Callable[[Run, Progress], None]
IDLE = 0.3  # seconds between two looks at a store whose remaining runs others hold


class Worker:
    """Works through a plan in this process.

    folder: where checkpoints and trained models go.
    """

    def __init__(self, plan: Plan, store: Store, folder: Path, listener: Listener | None = None) -> None:
        self.plan, self.store, self.folder, self.listener = plan, store, folder, listener
        self._runs = {r.key: r for r in plan.runs}
        self._prepared: OrderedDict[int, Prepared] = OrderedDict()
        self._task = task_of(plan.dataset)
        self._loss = self._task.loss  # what `loss=auto` stands for

    def work(self) -> None:
        """Return when every run of the plan is finished, by this process or another."""
        while True:
            key = self.store.claim(self._runs)
            if key is not None:
                self.execute(self._runs[key])
            elif self._runs.keys() <= self.store.finished():
                return
            else:
                time.sleep(IDLE)

    def execute(self, task: Run) -> None:
        """One run, from claim to recorded result."""
        try:
            prepared = self._split(task.seed)
            recipe, tuned = self._tune(task, prepared) if self.plan.tune else (task.recipe, {})
            result = self._train(task, recipe, prepared, judge=True, name=task.key)
        except BaseException:
            self.store.release(task.key)
            raise
        self._keep_model(task, result)
        value = result.metrics.get(self.plan.metric)
        record = _record(task, recipe, tuned, result)
        record["split"] = {"seed": task.seed, "file": split_file(Path(), self.plan, task.seed).as_posix()}
        self.store.finish(task.key, value, record)
        self._drop_checkpoints(task.key)

    def _split(self, seed: int) -> Prepared:
        if seed not in self._prepared:
            split = data.split(self.plan.dataset, seed)
            path = split_file(self.folder, self.plan, seed)
            if not path.is_file():
                save_state(path, dict(split.index))
            self._prepared[seed] = Prepared.of(split)
            if len(self._prepared) > 2:
                self._prepared.popitem(last=False)
        return self._prepared[seed]

    def _train(self, task: Run, recipe: Recipe, prepared: Prepared, judge: bool, name: str) -> RunResult:
        listener = self.listener
        return run(
            recipe, prepared, checkpoint=self._checkpoint(name), judge=judge,
            on_epoch=None if listener is None else lambda progress: listener(task, progress),
        )  # fmt: skip

    def _tune(self, task: Run, prepared: Prepared) -> tuple[Recipe, dict[str, Any]]:
        """The best of `tune` trials on the validation split; the first is the recipe as written.

        The sampler is seeded by the run and the number of finished trials, so that a study interrupted at
        any point goes on as if it had not been.
        """
        seed = int(hashlib.sha256(task.key.encode()).hexdigest()[:8], 16)
        study = self.store.tuning_study(task.key, _sampler(seed))
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        space = search_space(task.recipe, self._task)
        while (done := len(study.get_trials(deepcopy=False, states=states))) < self.plan.tune:
            study.sampler = _sampler(seed + done)
            for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
            trial = study.ask()
            chosen = {} if done == 0 else {name: _suggest(trial, name, s) for name, s in space.items()}
            recipe = with_parameters(task.recipe, chosen, self._loss)
            name = f"{task.key}-tune{done}"
            try:
                result = self._train(task, recipe, prepared, judge=False, name=name)
            except InputError:  # settings that do not go together; those as written were checked
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            trial.set_user_attr("chosen", chosen)
            score = result.val.get("val_score")
            if score is None or not math.isfinite(score):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, score)
            self._drop_checkpoints(name)
        complete = [
            t for t in study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE
        ]
        if not complete:
            return task.recipe, {}
        # the earliest of equals, so that a tie does not depend on the database's order
        best = max(complete, key=lambda t: (t.value, -t.number))
        chosen = best.user_attrs["chosen"]
        return with_parameters(task.recipe, chosen, self._loss), chosen

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def _drop_checkpoints(self, name: str) -> None:
        for path in (self.folder / "checkpoints").glob(f"{name}.*"):  # the teacher has one too
            path.unlink(missing_ok=True)

    def _keep_model(self, task: Run, result: RunResult) -> None:
        """Keep the model of the arm's seed with the best validation score, and drop the others."""
        if result.predictor is None:
            return
        mine = self.folder / "models" / task.key
        result.predictor.save(mine)
        siblings = {r.key: r for r in self.plan.runs if r.arm == task.arm and r.key != task.key}
        scores = {k: r["val"].get("val_score", -math.inf) for k, r in self.store.results(siblings).items()}
        if not scores:
            return
        best = max(scores, key=lambda k: (scores[k], -siblings[k].seed))
        worse = (
            task.key if (scores[best], -siblings[best].seed) > (result.val["val_score"], -task.seed) else None
        )
        for key in [worse] if worse else scores:
            shutil.rmtree(self.folder / "models" / key, ignore_errors=True)


def split_file(folder: Path, plan: Plan, seed: int) -> Path:
    """Where the rows of train, val and test of a seed are kept: `load_state` gives their positions in the
    data whose fingerprint the name begins with."""
    return folder / "splits" / f"{plan.dataset.fingerprint[:16]}-seed{seed}.safetensors"


def search_space(recipe: Recipe, task: Task) -> dict[str, Real | Whole | Choice]:
    """What tuning varies: the step size, and what the cards of the recipe's parts name, as `slot.argument`.

    An argument that the user fixed in the recipe stays fixed, and so do the teacher, and what acts once
    training is over, of which the validation score knows nothing. Where the head or the normaliser brings a
    loss there is no other, and where scores are not of classes no normaliser.
    """
    brought = any(hasattr(_build(recipe, slot), "loss") for slot in ("head", "softmax"))
    space: dict[str, Real | Whole | Choice] = {"lr": Real(recipe.lr / 10, recipe.lr * 10, log=True)}
    for slot in SLOTS:
        value = getattr(recipe, slot)
        no_classes = slot == "softmax" and task.network != "classification"
        if isinstance(value, tuple) or slot in ("teacher", "detect", "adapt") or no_classes:
            continue
        auto = slot == "loss" and value.name == "auto"
        value = PartSpec.parse(task.loss) if auto else value
        card = card_of(slot, value)
        if card is None or (auto and brought):
            continue
        # an optimiser's lr is the recipe's, which is in the space already
        own = {k: s for k, s in card.search_space.items() if k not in value.kwargs and k != "lr"}
        space |= {f"{slot}.{k}": s for k, s in own.items()}
    return space


def _build(recipe: Recipe, slot: str) -> Any:
    card = card_of(slot, getattr(recipe, slot))
    return None if card is None else card.build


def with_parameters(recipe: Recipe, chosen: dict[str, Any], auto_loss: str) -> Recipe:
    """`recipe` with tuned values put in place."""
    changes: dict[str, Any] = {}
    for name, value in chosen.items():
        slot, _, argument = name.partition(".")
        if not argument:
            changes[slot] = value
            continue
        spec = changes.get(slot, getattr(recipe, slot))
        spec = PartSpec.parse(auto_loss) if spec.name == "auto" else spec
        value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        changes[slot] = spec.having(**{argument: value})
    return recipe.model_copy(update=changes)


def _suggest(trial: optuna.Trial, name: str, space: Real | Whole | Choice) -> Any:
    if isinstance(space, Real):
        return trial.suggest_float(name, space.low, space.high, log=space.log)
    if isinstance(space, Whole):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    # by position: an option may be a tuple, which the database cannot hold
    return space.options[trial.suggest_categorical(name, range(len(space.options)))]


def _sampler(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=5)


def _record(task: Run, recipe: Recipe, tuned: dict[str, Any], result: RunResult) -> dict[str, Any]:
    return {
        "key": task.key,
        "seed": task.seed,
        "status": result.status,
        "metrics": result.metrics,
        "val": result.val,
        "costs": result.costs,
        "curve": _thin(result.curve),
        "details": result.details,
        "tuned": tuned,
        "recipe": recipe.model_dump(mode="json"),
    }


def _thin(curve: list[dict[str, float]], most: int = 100) -> list[dict[str, float]]:
    """At most about `most` points, the last always among them."""
    stride = math.ceil(len(curve) / most) if curve else 1
    return [*curve[:-1][::stride], *curve[-1:]]
