"""Run benchmarks and write what came out."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import pkgutil
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import logitkit.bench
from logitkit.bench.base import Case
from logitkit.bench.measure import Times, extra_memory, interleave
from logitkit.errors import InputError, nearest

_FRAMEWORK = {"base", "measure", "run"}


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(m.name for m in pkgutil.iter_modules(logitkit.bench.__path__) if m.name not in _FRAMEWORK)


def find(name: str) -> ModuleType:
    """The benchmark called `name`; InputError if there is none."""
    if name not in names():
        raise InputError(
            f"there is no benchmark {name!r}.{nearest(name, names())} Known: {', '.join(names())}."
        )
    return importlib.import_module(f"logitkit.bench.{name}")


def run(
    name: str, *, memory: bool = True, watch: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Measure every case of a benchmark. `watch` is called with each case's numbers as they come."""
    benchmark = find(name)
    found: list[dict[str, Any]] = []
    for index, case in enumerate(benchmark.cases()):
        found.append(_run_case(name, index, case, memory))
        if watch is not None:
            watch(found[-1])
    return {
        "benchmark": name,
        "title": (benchmark.__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"torch": torch.__version__, **_versions(["numba", "triton", *benchmark.PEERS])},
        "absent": [p for p in benchmark.PEERS if p not in _versions(benchmark.PEERS)],
        "cases": found,
    }


def save(result: dict[str, Any], folder: Path) -> Path:
    """Write a result as JSON into `folder`; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().split("\n\n")[0].splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        family = f"family {fields.get('cpu family')}, model {fields.get('model')}"
        cpu = f"{fields.get('model name', cpu)} ({family})"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
    }


def _run_case(name: str, index: int, case: Case, memory: bool) -> dict[str, Any]:
    # Memory first: this process is still small.
    extra = {arm: extra_memory(name, index, arm) for arm in case.memory} if memory else {}
    arms = case.build(False)
    times = interleave(arms.run, case.rounds)
    values = dict(arms.values()) if arms.values is not None else {}
    return {
        "case": case.name,
        "others": round(times.others, 2),
        "rounds": case.rounds,
        "median_ms": {arm: 1e3 * times.median(arm) for arm in arms.run},
        "seconds": times.seconds,
        "extra_mib": extra,
        "values": values,
        "goals": [g for goal in case.goals if (g := _judge(goal, times, extra, values)) is not None],
    }


def _judge(goal: Any, times: Times, extra: dict[str, Any], values: dict[str, float]) -> dict[str, Any] | None:
    """The goal with what was measured; None if its peer is not installed or memory was not measured."""
    if goal.unit == "x":
        if goal.of not in times.seconds:
            return None
        measured: float | None = times.ratio(goal.arm, goal.of)
    elif goal.unit == "MiB":
        if goal.arm not in extra:
            return None
        measured = extra[goal.arm]
    else:
        measured = values[goal.arm]
    met = measured is not None and measured <= goal.at_most
    return {"goal": goal.text, "measured": measured, "at_most": goal.at_most, "met": met}


def _versions(distributions: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
