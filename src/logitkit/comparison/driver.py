"""`logitkit.compare`: plan, run, rank, save the winner."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from logitkit.comparison.plan import Plan, Run, make_plan
from logitkit.comparison.result import Comparison, rank
from logitkit.comparison.store import Store
from logitkit.comparison.work import Worker
from logitkit.engine.train import Progress
from logitkit.errors import InputError, Stopped, WorkerDied

FOLDER = Path("logitkit-runs")
Watcher = Callable[["Status"], None]


class Status:
    """How far a comparison is: results so far, and how many runs are under way."""

    def __init__(self, plan: Plan, records: dict[str, dict[str, Any]], running: int) -> None:
        self.plan, self.records, self.running = plan, records, running

    @property
    def finished(self) -> int:
        return len(self.records)

    @property
    def total(self) -> int:
        return len(self.plan.runs)


def compare(
    *,
    seeds: int = 5,
    tune: int = 0,
    metric: str | None = None,
    jobs: int | None = None,
    store: str | Path | None = None,
    folder: str | Path = FOLDER,
    watch: Watcher | None = None,
    command: str | None = None,
    **settings: Any,
) -> Comparison:
    """Rank recipes on your data under equal budgets.

    >>> result = logitkit.compare(loss=["ce", "ldr", "z_loss"], data="digits", seeds=5)
    >>> result.table(); result.best.predict("new.csv"); result.report("report.html")

    settings: recipe slots and settings, each one value or several; several are compared, every combination
              of them. The first recipe is the reference of all differences. See `logitkit.engine.Recipe`.
    seeds:    runs per recipe; seed s fixes initialisation, batch order and data split, the same for all.
    tune:     trials per recipe and seed over the search space of its parts, judged on validation only.
    metric:   what the ranking is by; the task's usual one by default.
    jobs:     processes, by default one per core (one where processes cannot be forked: CUDA, macOS, Windows).
              The numbers do not depend on it.
    store:    SQLite file or database URL with the results so far; `folder`/store.sqlite by default. Runs
              that it holds are not run again, and several machines may share it.
    folder:   where checkpoints, models and the winner go.
    watch:    called with a `Status` as results come in.

    Raises `InputError` for settings that cannot work, before anything runs.
    """
    plan = make_plan(settings, seeds=seeds, tune=tune, metric=metric)
    jobs = _jobs(jobs, len(plan.runs))
    folder = Path(folder)
    url = folder / "store.sqlite" if store is None else store
    keys = [r.key for r in plan.runs]
    shared = Store(url)
    if not set(keys) <= shared.finished():
        if jobs > 1:
            shared.disconnect()
            _run_processes(plan, url, folder, jobs, watch)
        else:
            _run_here(plan, shared, folder, watch)
    records = shared.results(keys)
    if watch is not None:
        watch(Status(plan, records, 0))
    winner = save_winner(plan, records, folder)
    return Comparison(plan, records, command or "logitkit.compare(...)", winner)


def start_method() -> str:
    """How worker processes start: "fork", which costs nothing as torch and the data are in memory already,
    or "spawn" where a forked process could not work (CUDA, macOS, Windows)."""
    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def _jobs(jobs: int | None, runs: int) -> int:
    if jobs is None:
        # spawned processes import the caller's script again, so they are used only when asked for
        return min(len(os.sched_getaffinity(0)), runs) if start_method() == "fork" else 1
    if isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"jobs={jobs} is not possible: expected a whole number of at least 1.")
    return min(jobs, runs)


def _run_here(plan: Plan, store: Store, folder: Path, watch: Watcher | None) -> None:
    keys = [r.key for r in plan.runs]
    last = 0.0

    def listen(task: Run, progress: Progress) -> None:
        nonlocal last
        if watch is not None and time.monotonic() - last > 0.5:
            last = time.monotonic()
            watch(Status(plan, store.results(keys), store.running()))

    try:
        Worker(plan, store, folder, listen).work()
    finally:
        store.release_all()


def _work(plan: Plan, url: str | Path, folder: Path, errors: Any) -> None:
    torch.set_num_threads(1)
    store = Store(url)
    try:
        Worker(plan, store, folder).work()
    except (KeyboardInterrupt, Stopped):
        store.release_all()
    except BaseException as error:
        store.release_all()
        errors.put(error if isinstance(error, InputError) else traceback.format_exc())
        raise SystemExit(1) from error


def _run_processes(plan: Plan, url: str | Path, folder: Path, jobs: int, watch: Watcher | None) -> None:
    """Run workers as processes until nothing is left to do."""
    context: Any = multiprocessing.get_context(start_method())
    errors = context.SimpleQueue()
    # What every worker needs, done once before they fork.
    import torchmetrics.functional.classification  # noqa: F401

    _ = plan.runs, plan.dataset.fingerprint
    workers = [context.Process(target=_work, args=(plan, url, folder, errors)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    try:
        store = Store(url)
        keys = [r.key for r in plan.runs]
        while any(w.is_alive() for w in workers):
            # half a second between looks: reading the store takes time that the workers could train in
            multiprocessing.connection.wait([w.sentinel for w in workers if w.is_alive()], timeout=0.5)
            if watch is not None:
                watch(Status(plan, store.results(keys), store.running()))
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()
    if not errors.empty():
        error = errors.get()
        raise error if isinstance(error, InputError) else RuntimeError(f"a worker failed:\n{error}")
    failed = [w.exitcode for w in workers if w.exitcode]
    if failed:
        raise WorkerDied(
            f"a worker process ended with code {failed[0]}, perhaps for lack of memory; what is finished is"
            " kept, and the same command goes on from here (--jobs 1 needs less memory)."
        )


def save_winner(plan: Plan, records: dict[str, dict[str, Any]], folder: Path) -> Path | None:
    """Put the best recipe's best model by validation score into `folder`/winner.

    A model that another machine trained is trained here once more; training is deterministic.
    """
    done = [r for r in plan.runs if records.get(r.key, {}).get("status") == "done"]
    if not done:
        return None
    first = rank(plan, records)[0].arm
    candidates = [r for r in done if r.arm == first]
    best = max(candidates, key=lambda r: (records[r.key]["val"]["val_score"], -r.seed))
    source = folder / "models" / best.key
    if not (source / "about.json").is_file():
        from logitkit.engine.recipe import Recipe
        from logitkit.engine.run import prepare, run

        recipe = Recipe.of(**records[best.key]["recipe"])
        result = run(recipe, prepare(recipe, plan.dataset))
        if result.predictor is None:
            return None
        result.predictor.save(source)
    winner = folder / "winner"
    fresh = folder / f".winner.{os.getpid()}.{threading.get_ident()}"
    shutil.copytree(source, fresh, dirs_exist_ok=True)
    shutil.rmtree(winner, ignore_errors=True)
    os.replace(fresh, winner)
    return winner
