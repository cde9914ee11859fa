"""Made-up results in the shape of `Comparison.to_dict()`, for any verdicts, however many arms and seeds."""

from __future__ import annotations

import math
import random
from typing import Any

METRICS = {
    "classification": {
        "accuracy": True, "balanced_accuracy": True, "nll": False, "ece": False, "ood_auroc": True,
        "noise_accuracy": True,
    },
    "regression": {"rmse": False, "mae": False, "r2": True, "ood_auroc": True, "noise_rmse": False},
}  # fmt: skip


def results(
    verdicts: list[str] | None = None,
    *,
    labels: list[str] | None = None,
    seeds: int = 3,
    task: str = "classification",
    data: str = "digits",
    diverged: dict[int, int] | None = None,
    missing: int = 0,
    tune: int = 0,
) -> dict[str, Any]:
    """verdicts: of arms 1, 2, ...; arm 0 is the reference. diverged: arm -> how many of its runs did.
    missing: how many of the last runs have not finished."""
    verdicts = ["no difference shown"] if verdicts is None else verdicts
    draw = random.Random(0)
    arms = len(verdicts) + 1
    labels = labels or [f"loss={'cross_entropy' if a == 0 else f'loss_{a}'}" for a in range(arms)]
    metric = "accuracy" if task == "classification" else "rmse"
    shift = {"better": 0.05, "worse": -0.05}
    planned = [(seed, arm) for seed in range(seeds) for arm in range(arms)]
    runs = []
    for seed, arm in planned[: len(planned) - missing]:
        broken = seed < (diverged or {}).get(arm, 0)
        quality = 0.9 + shift.get(verdicts[arm - 1] if arm else "", 0.0) + draw.uniform(-0.01, 0.01)
        runs.append(_run(arm, seed, task, quality, broken, draw, bool(tune)))
    ranking = [
        _row(arm, labels[arm], runs, metric, verdicts[arm - 1] if arm else "reference") for arm in range(arms)
    ]
    sign = -1 if METRICS[task][metric] else 1
    ranking.sort(key=lambda r: math.inf if math.isnan(r["mean"]) else sign * r["mean"])
    for position, row in enumerate(ranking, start=1):
        row["rank"] = position
    return {
        "study": {
            "data": {
                "name": data, "rows": 1797, "task": task,
                "kind": "image" if task == "classification" else "vector",
                "classes": 10 if task == "classification" else None, "fingerprint": "ab" * 32,
            },
            "metric": metric, "higher_is_better": METRICS[task][metric], "metrics": METRICS[task],
            "seeds": seeds, "tune": tune, "varied": ["loss"] if arms > 1 else [],
            "runs_planned": len(planned), "runs_finished": len(runs), "test_to_train": 0.25,
            "command": f"logitkit compare data={data}", "winner": "logitkit-runs/winner" if runs else None,
            "versions": {"python": "3.11.7", "logitkit": "0.1.0"}, "machine": "a machine",
        },
        "arms": [
            {"label": label, "recipe": _recipe(data, label.removeprefix("loss=")), "hash": "0" * 16}
            for label in labels
        ],
        "ranking": ranking,
        "runs": runs,
    }  # fmt: skip


def _recipe(data: str, loss: str) -> dict[str, Any]:
    return {
        "data": data,
        "model": "mlp",
        "loss": loss,
        "regularize": [],
        "lr": 0.001,
        "steps": None,
        "detect": "msp",
    }


def _row(arm: int, label: str, runs: list[dict[str, Any]], metric: str, verdict: str) -> dict[str, Any]:
    mine = [run for run in runs if run["arm"] == arm]
    done = [run for run in mine if run["status"] == "done"]
    reference = [run for run in runs if run["arm"] == 0 and run["status"] == "done"]
    values = [run["metrics"][metric] for run in done]
    mean = sum(values) / len(values) if values else math.nan
    half = 0.01 * abs(mean) if len(values) > 1 else math.nan
    tested = verdict not in ("reference", "too few runs")
    shift = mean - sum(r["metrics"][metric] for r in reference) / len(reference) if tested else math.nan
    keys = {key for run in done for key in (*run["metrics"], *run["costs"])}
    return {
        "arm": arm, "label": label, "rank": 0, "mean": mean, "low": mean - half, "high": mean + half,
        "effect": {"mean": shift, "low": shift - 0.01, "high": shift + 0.01, "p": 0.01} if tested else None,
        "p": 0.02 if tested else None, "verdict": verdict,
        "runs": len(mine), "diverged": len(mine) - len(done),
        "means": {
            key: sum({**r["metrics"], **r["costs"]}[key] for r in done) / len(done) for key in sorted(keys)
        },
    }  # fmt: skip


def _run(
    arm: int, seed: int, task: str, quality: float, broken: bool, draw: random.Random, tuned: bool
) -> dict[str, Any]:
    classes = task == "classification"
    score = "val_accuracy" if classes else "val_rmse"
    curve = [
        {"step": 10 * k, "loss": 2.0 / k + 0.1 * arm, "val_score": quality, score: quality * (1 - 0.5 / k)}
        for k in range(1, 9)
    ]
    metrics = (
        {
            "accuracy": quality, "balanced_accuracy": quality, "nll": 0.2, "ece": 0.02, "ood_auroc": 0.9,
            "noise_accuracy": 0.8,
        }
        if classes
        else {"rmse": 60 * (1.5 - quality), "mae": 40.0, "r2": 0.5, "noise_rmse": 60.0}
    )  # fmt: skip
    bins = 15
    details = {
        "reliability": {
            "confidence": [0.0] * 5 + [(k + 0.5) / bins for k in range(5, bins)],
            "accuracy": [0.0] * 5 + [(k + 0.2) / bins for k in range(5, bins)],
            "count": [0.0] * 5 + [float(4 * k) for k in range(5, bins)],
        },
        "ood": {
            "edges": [k / 30 + 0.01 * seed for k in range(31)],
            "inside": [30 - k for k in range(30)],
            "outside": list(range(30)),
        },
    }
    return {
        "arm": arm, "key": f"{arm}-{seed}", "seed": seed,
        "status": "diverged: the loss is nan at step 3" if broken else "done",
        "metrics": {} if broken else metrics, "val": {} if broken else curve[-1],
        "costs": {
            "train_seconds": draw.uniform(1, 2), "peak_memory_mb": None if broken else draw.uniform(400, 500),
            "parameters": 26122,
        },
        "curve": curve[:1] if broken else curve, "details": details if classes and not broken else {},
        "tuned": {"lr": 0.0123456, "model.hidden": [128]} if tuned and seed else {}, "recipe": {},
    }  # fmt: skip
