"""What a second process gains on the default comparison. The goal is at least 1.7x the throughput on 2 cores.

Both arms are the whole `logitkit.compare` call (planning, starting processes, training, ranking, saving the
winner) into an empty store, alternating in one process that has imported what it needs; the start of the
interpreter and its imports, the same for both, are told apart in `import_seconds`.

    python benchmarks/jobs.py [ROUNDS]
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time

STARTED = time.perf_counter()


def main() -> None:
    import logitkit

    with tempfile.TemporaryDirectory() as folder:  # everything that is imported on first use
        logitkit.compare(data="iris", loss=["ce", "focal"], seeds=2, epochs=1, jobs=1, folder=folder)
    imported = time.perf_counter() - STARTED
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[int, list[float]] = {1: [], 2: []}
    metrics = {}
    for i in range(rounds):
        for jobs in (1, 2) if i % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                result = logitkit.compare(jobs=jobs, folder=folder)
                times[jobs].append(time.perf_counter() - started)
            metrics[jobs] = [result.records[run.key]["metrics"] for run in result.plan.runs]
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    found = {
        "benchmark": "jobs",
        "ratio": round(statistics.median(ratios), 2),
        "goal": 1.7,
        "same_numbers": metrics[1] == metrics[2],
        "runs_per_second": {
            str(j): round(len(metrics[j]) / statistics.median(t), 2) for j, t in times.items()
        },
        "seconds": {str(j): round(statistics.median(t), 2) for j, t in times.items()},
        "import_seconds": round(imported, 2),
        "rounds": rounds,
        "machine": platform.platform(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
