"""How much `--jobs 2` gains over `--jobs 1` on the default comparison. The goal is at least 1.7x.

Each arm is the whole command in a fresh process with an empty store, alternating; start-up, planning,
ranking and the report included.

    python benchmarks/jobs.py [ROUNDS]
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(jobs: int) -> tuple[float, list[dict[str, float]]]:
    """Wall-clock seconds of the default comparison, and its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "logitkit", "compare", "--jobs", str(jobs), "--json", "numbers.json"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        taken = time.perf_counter() - started
        numbers = json.loads((Path(folder) / "numbers.json").read_text())
    return taken, [run["metrics"] for run in numbers["runs"]]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[int, list[float]] = {1: [], 2: []}
    metrics = {}
    for i in range(rounds):
        for jobs in (1, 2) if i % 2 else (2, 1):
            taken, metrics[jobs] = seconds(jobs)
            times[jobs].append(taken)
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    result = {
        "benchmark": "jobs",
        "ratio": round(statistics.median(ratios), 2),
        "goal": 1.7,
        "same_numbers": metrics[1] == metrics[2],
        "seconds": {str(jobs): round(statistics.median(t), 2) for jobs, t in times.items()},
        "rounds": rounds,
        "machine": platform.platform(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
