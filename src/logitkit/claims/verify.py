"""Run claims and write down what they show."""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import pkgutil
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import logitkit.claims
from logitkit import catalog
from logitkit.claims.base import Claim, Evidence, Trial, part_number, quick, registered
from logitkit.comparison.driver import start_method
from logitkit.comparison.result import finite, versions
from logitkit.engine.checkpoint import write_atomically
from logitkit.errors import InputError
from logitkit.registry import ROOMS


def all_claims() -> list[Claim]:
    """Every claim there is, by room and part."""
    for package in pkgutil.iter_modules(logitkit.claims.__path__):
        if package.ispkg:
            room = importlib.import_module(f"logitkit.claims.{package.name}")
            for module in pkgutil.iter_modules(room.__path__):
                importlib.import_module(f"logitkit.claims.{package.name}.{module.name}")
    return [registered()[key] for key in sorted(registered())]


def select(names: Sequence[str] | None) -> list[Claim]:
    """The claims of the named parts and rooms; all of them for None. A companion's claim is its main
    part's. Raises InputError for an unknown name or one without a claim."""
    everything = all_claims()
    if names is None:
        return everything
    chosen: dict[tuple[str, str], Claim] = {}
    for name in names:
        if name in ROOMS:
            found = [c for c in everything if c.room == name]
        else:
            main = {(c.number, c.companion_of or c.name) for c in catalog.find(name) if not c.reference}
            found = [c for c in everything if (part_number(c), c.part) in main]
        if not found:
            raise InputError(f"{name} has no claim: it is a reference part or an empty room.")
        chosen |= {(c.room, c.part): c for c in found}
    return list(chosen.values())


def verify(
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    jobs: int = 1,
    folder: Path | None = None,
    watch: Callable[[Evidence, int, int], None] | None = None,
) -> list[Evidence]:
    """Run the claims of the named parts and rooms, or all of them.

    quick:  first seed and a small budget; shows that the experiments run and proves nothing.
    jobs:   claims at once, as processes.
    folder: write `<room>/<part>.json` there.
    watch:  called with each piece of evidence as it comes, how many there are now, and of how many.
    """
    if isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"jobs={jobs} is not possible: expected a whole number of at least 1.")
    claims = longest_first(select(names), folder) if jobs > 1 else select(names)
    found = []
    for evidence in _run([(c, quick) for c in claims], jobs):
        found.append(evidence)
        if folder is not None:
            path = folder / evidence.room / f"{evidence.part}.json"
            write_atomically(path, (json.dumps(finite(evidence.to_dict()), indent=1) + "\n").encode())
        if watch is not None:
            watch(evidence, len(found), len(claims))
    return found


def longest_first(claims: list[Claim], folder: Path | None) -> list[Claim]:
    """Claims in order of the seconds that they took when `folder` was written, unknown ones first: a long one
    begun last would leave the other processes idle."""

    def seconds(each: Claim) -> float:
        path = folder / each.room / f"{each.part}.json" if folder is not None else None
        if path is None or not path.is_file():
            return math.inf
        return float(json.loads(path.read_text())["seconds"])

    return sorted(claims, key=seconds, reverse=True)


def _run(tasks: list[tuple[Claim, bool]], jobs: int) -> Iterator[Evidence]:
    jobs = min(jobs, len(tasks))
    if jobs < 2:
        yield from map(_one, tasks)
        return
    pool = multiprocessing.get_context(start_method()).Pool(jobs, initializer=_in_worker)
    try:
        yield from pool.imap_unordered(_one, tasks)
        pool.close()
    except BaseException:
        pool.terminate()
        raise
    finally:
        pool.join()


def _in_worker() -> None:
    """A worker is stopped by its parent: Ctrl-C, which reaches both, is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one(task: tuple[Claim, bool]) -> Evidence:
    claim, is_quick = task
    claim = quick(claim) if is_quick else claim
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the numbers must not depend on how many claims run at once
    try:
        checks = claim.experiment(Trial(claim.seeds, is_quick))
    finally:
        torch.set_num_threads(threads)
    return Evidence(
        room=claim.room,
        part=claim.part,
        number=part_number(claim),
        statement=claim.statement,
        seeds=claim.seeds,
        checks=tuple(checks),
        seconds=time.perf_counter() - started,
        versions=versions(),
        machine=f"{platform.machine()} {platform.system()}",
        quick=is_quick,
        note=claim.note,
    )
