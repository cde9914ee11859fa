"""Times and memory, measured so that they can be compared.

Times: every round runs each arm once, in rotated order, and ratios are taken within a round, so that a
machine whose speed drifts treats all arms alike. Memory: each arm in a process of its own, as the growth of
its peak beyond inputs, gradients and what a tiny problem had already loaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from logitkit.bench.base import Arm, Case


@dataclass(frozen=True)
class Times:
    """seconds: each arm's time in each round. others: cores that other processes used meanwhile."""

    seconds: dict[str, list[float]]
    others: float

    def median(self, arm: str) -> float:
        return statistics.median(self.seconds[arm])

    def medians(self) -> list[float]:
        return [self.median(arm) for arm in self.seconds]

    def ratio(self, arm: str, of: str) -> float:
        """Median over rounds of one arm's time over another's."""
        pairs = zip(self.seconds[arm], self.seconds[of], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleave(arms: Mapping[str, Arm], rounds: int) -> Times:
    """Run each arm once to warm up, then `rounds` rounds of all of them."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        arms[name]()
    busy, own, started = _busy(), time.process_time(), time.perf_counter()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            _wait_for_accelerator()
            began = time.perf_counter()
            arms[name]()
            _wait_for_accelerator()
            seconds[name].append(time.perf_counter() - began)
    wall = time.perf_counter() - started
    others = (_busy() - busy) - (time.process_time() - own)
    return Times(seconds, max(0.0, others / wall))


def extra_memory(benchmark: str, case: int, arm: str) -> float | None:
    """MiB that the arm's call needs beyond inputs and gradients; None if it fails, for want of memory say."""
    command = [sys.executable, "-m", "logitkit.bench.measure", benchmark, str(case), arm]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def _measure_memory(case: Case, arm: str) -> float:
    case.build(True).run[arm]()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    arms = case.build(False)
    gradients = [torch.ones_like(x) for x in arms.leaves]
    before = _peak()
    del gradients
    arms.run[arm]()
    return (_peak() - before) / 2**20


def _peak() -> int:
    """Most memory this process, or the GPU for it, has held at once, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _busy() -> float:
    """CPU seconds used by everything on this machine; 0 where that is not known."""
    if sys.platform != "linux":
        return 0.0
    fields = Path("/proc/stat").read_text().split(maxsplit=4)
    return (int(fields[1]) + int(fields[2]) + int(fields[3])) / os.sysconf("SC_CLK_TCK")


def _wait_for_accelerator() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    from logitkit.bench.run import find

    name, index, arm = sys.argv[1:]
    print(json.dumps(_measure_memory(find(name).cases()[int(index)], arm)))
