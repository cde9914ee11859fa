"""One run of a comparison: train a recipe on a split, judge it on the test rows, say what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from logitkit import data
from logitkit.engine.predictor import Predictor
from logitkit.engine.recipe import Recipe
from logitkit.engine.tasks import TASKS
from logitkit.engine.train import Diverged, Prepared, Progress, Trainer, threads, validation_order


@dataclass
class RunResult:
    """What one run found.

    metrics: on the test split. val: the validation scores at the end. costs: `train_seconds` (the teacher's
    included), `peak_memory_mb` (of the process while it ran; None where the system does not tell),
    `parameters`. curve: one point per epoch. details: reliability bins and out-of-distribution histograms.
    status: "done", or "diverged: ..." with no metrics.
    """

    metrics: dict[str, float]
    val: dict[str, float]
    costs: dict[str, float | None]
    curve: list[dict[str, float]]
    details: dict[str, Any] = field(default_factory=dict)
    status: str = "done"
    predictor: Predictor | None = field(default=None, repr=False)


def prepare(recipe: Recipe, dataset: data.Dataset | None = None) -> Prepared:
    """The recipe's data, split by its split seed and preprocessed."""
    dataset = data.load(recipe.data) if dataset is None else dataset
    seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
    return Prepared.of(data.split(dataset, seed))


def run(
    recipe: Recipe,
    prepared: Prepared | None = None,
    *,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    on_epoch: Callable[[Progress], None] | None = None,
    judge: bool = True,
) -> RunResult:
    """Train `recipe` and judge it.

    prepared: the split to use, when several runs share it; made from the recipe otherwise.
    judge:    False stops after validation and never looks at the test rows (tuning).

    Leaves the caller's random state and thread count as they were. A run that diverges returns with its
    status saying so; `InputError` is raised for a recipe that cannot take the data.
    """
    with isolated(recipe.threads):
        prepared = prepare(recipe) if prepared is None else prepared
        trainer = Trainer(
            recipe, prepared, checkpoint=checkpoint, checkpoint_every=checkpoint_every, on_epoch=on_epoch
        )
        memory = _PeakMemory(trainer.accelerator.device)
        parameters = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
        status, predictor = "done", None
        metrics: dict[str, float] = {}
        details: dict[str, Any] = {}
        val: dict[str, float] = {}
        try:
            network, prepared = trainer.run(), trainer.data
            val = dict(trainer.progress.curve[-1]) if recipe.patience is None else _best(trainer.progress)
            if network.finder is not None:
                val |= trainer.validate()  # what is found may be less than what all scores would find
                network.eval()
            network = network.to("cpu")
            predictor = Predictor.fit(recipe, network, prepared) if judge else None
        except Diverged as error:
            status = f"diverged: {error}"
        else:
            if predictor is not None:
                x, y = prepared.test
                task, pre = TASKS[prepared.shape.task], prepared.preprocessor
                train = prepared.train[0], task.truth(prepared.train[1], pre)
                metrics, details = predictor.evaluate(x, task.truth(y, pre), train=train)
                predictor.metrics = metrics
        costs = {
            "train_seconds": trainer.seconds,
            "peak_memory_mb": memory.peak(),
            "parameters": parameters,
        }
        return RunResult(metrics, val, costs, trainer.progress.curve, details, status, predictor)


def _best(progress: Progress) -> dict[str, float]:
    best = max(progress.curve, key=validation_order)
    return dict(best)


@contextmanager
def isolated(number: int) -> Iterator[None]:
    """Run with so many CPU threads, and leave the caller's thread count and random state as they were."""
    with threads(number), torch.random.fork_rng():
        yield


class _PeakMemory:
    """Peak memory from now on, in MiB: of the device if it has its own, else resident memory (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
                self._linux = True
            except OSError:
                self._linux = False

    def peak(self) -> float | None:
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda) / 2**20
        if not self._linux:
            return None
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
