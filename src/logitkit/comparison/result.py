"""What a comparison found: the ranking, and every number behind it."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitkit.comparison.plan import Plan
from logitkit.comparison.stats import Effect, Verdict, holm, mean_interval, paired_effect, verdict
from logitkit.data.base import OF_NUMBERS
from logitkit.engine.checkpoint import write_atomically
from logitkit.engine.predictor import Predictor, load
from logitkit.engine.tasks import TASKS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import polars as pl


@dataclass(frozen=True)
class Row:
    """One arm of the ranking.

    mean, low, high: the primary metric and its 95 % interval over seeds and splits.
    effect: difference from the reference arm, None for the reference itself.
    p: Holm-adjusted. verdict: "reference", or what the data support.
    means: every metric and cost, averaged over the seeds that finished.
    runs, diverged: how many runs finished, and how many of them without a result.
    """

    arm: int
    label: str
    rank: int
    mean: float
    low: float
    high: float
    effect: Effect | None
    p: float | None
    verdict: Verdict | str
    means: Mapping[str, float]
    runs: int
    diverged: int


def rank(plan: Plan, records: Mapping[str, dict[str, Any]]) -> list[Row]:
    """The arms by mean of the primary metric, from the results there are; arms without one come last."""
    metric, better = plan.metric, plan.higher_is_better
    by_arm: list[dict[int, dict[str, Any]]] = [{} for _ in plan.arms]
    for run in plan.runs:
        if run.key in records:
            by_arm[run.arm][run.seed] = records[run.key]
    values = [
        {seed: r["metrics"][metric] for seed, r in found.items() if r["status"] == "done"} for found in by_arm
    ]
    effects: dict[int, Effect | None] = {}
    for arm in range(1, len(plan.arms)):
        common = sorted(values[0].keys() & values[arm].keys())
        effects[arm] = paired_effect(
            [values[arm][s] for s in common],
            [values[0][s] for s in common],
            plan.test_to_train,
            plan.resolution,
        )
    tested = [arm for arm, effect in effects.items() if effect is not None]
    adjusted = dict(zip(tested, holm([effects[a].p for a in tested]), strict=True))  # type: ignore[union-attr]

    def order(arm: int) -> tuple[float, int]:
        mean = (
            float(np.mean(list(values[arm].values()))) if values[arm] else -math.inf if better else math.inf
        )
        return (-mean if better else mean), arm

    rows = []
    for position, arm in enumerate(sorted(range(len(plan.arms)), key=order), start=1):
        scores = list(values[arm].values())
        mean, low, high = (
            mean_interval(scores, plan.test_to_train) if scores else (math.nan, math.nan, math.nan)
        )
        done = [r for r in by_arm[arm].values() if r["status"] == "done"]
        rows.append(
            Row(
                arm=arm,
                label=plan.labels[arm],
                rank=position,
                mean=mean,
                low=low,
                high=high,
                effect=effects.get(arm),
                p=adjusted.get(arm),
                verdict="reference" if arm == 0 else verdict(effects[arm], adjusted.get(arm, 1.0), better),
                means=_means(done),
                runs=len(by_arm[arm]),
                diverged=len(by_arm[arm]) - len(done),
            )
        )
    return rows


def _means(records: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in {**record["metrics"], **record["costs"]}.items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(v)) for name, v in found.items()}


class Comparison:
    """The result of `logitkit.compare`.

    ranking: rows from best to worst. `table()` is the ranking as a polars DataFrame, `plot()` a plotly
    figure of it, `best` the winning model, `report(path)` one HTML file with everything.
    """

    def __init__(
        self, plan: Plan, records: Mapping[str, dict[str, Any]], command: str, winner: Path | None
    ) -> None:
        self.plan, self.records, self.command, self.winner = plan, dict(records), command, winner
        self.ranking = rank(plan, self.records)

    @property
    def best(self) -> Predictor:
        """The winner: the best-ranked recipe's model with the best validation score, loaded from `winner`."""
        if self.winner is None:
            raise ValueError("no run finished, so there is no winner.")
        return load(self.winner, trust_code=True)

    def table(self) -> pl.DataFrame:
        """One row per recipe: rank, primary metric with interval, difference from the first, every mean."""
        import polars as pl

        return pl.DataFrame(
            [
                {
                    "rank": r.rank,
                    "recipe": r.label,
                    self.plan.metric: r.mean,
                    "low": r.low,
                    "high": r.high,
                    "difference": r.effect.mean if r.effect else None,
                    "difference_low": r.effect.low if r.effect else None,
                    "difference_high": r.effect.high if r.effect else None,
                    "p_holm": r.p,
                    "verdict": r.verdict,
                    **{k: v for k, v in r.means.items() if k != self.plan.metric},
                }
                for r in self.ranking
            ],
            infer_schema_length=None,
        )

    def plot(self) -> go.Figure:
        """The ranking as points with 95 % intervals."""
        from logitkit.report import ranking_figure

        return ranking_figure(self.to_dict())

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file."""
        from logitkit.report import write_report

        return write_report(self.to_dict(), Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values: `study`, `arms`, `ranking`, `runs`."""
        plan = self.plan
        data = plan.dataset
        split = next((r for r in self.records.values()), None)
        return {
            "study": {
                "data": {
                    "name": data.name,
                    "rows": len(data),
                    "task": data.task,
                    "kind": data.kind,
                    "classes": None if data.task in (*OF_NUMBERS, "boxes") else data.num_classes,
                    "fingerprint": data.fingerprint,
                },
                "metric": plan.metric,
                "higher_is_better": plan.higher_is_better,
                "metrics": dict(TASKS[data.task].metrics),
                "seeds": plan.seeds,
                "tune": plan.tune,
                "varied": list(plan.varied),
                "runs_planned": len(plan.runs),
                "runs_finished": sum(r.key in self.records for r in plan.runs),
                "test_to_train": plan.test_to_train,
                "command": self.command,
                "winner": str(self.winner) if self.winner else None,
                "versions": versions(),
                "machine": split["machine"] if split and "machine" in split else platform.platform(),
            },
            "arms": [
                {
                    "label": label,
                    "recipe": arm.model_dump(mode="json", exclude={"seed", "split_seed"}),
                    "hash": arm.hash,
                }
                for arm, label in zip(plan.arms, plan.labels, strict=True)
            ],
            "ranking": [{**asdict(r), "means": dict(r.means)} for r in self.ranking],
            "runs": [{"arm": r.arm, **self.records[r.key]} for r in plan.runs if r.key in self.records],
        }

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict()` as JSON (numbers that are not finite become null)."""
        write_atomically(Path(path), json.dumps(finite(self.to_dict()), indent=1).encode())

    def save_csv(self, path: str | Path) -> None:
        """Write one line per run: recipe, seed, status, every metric and cost."""
        lines: list[dict[str, Any]] = []
        for run in self.plan.runs:
            if (record := self.records.get(run.key)) is not None:
                lines.append(
                    {
                        "recipe": self.plan.labels[run.arm],
                        "seed": run.seed,
                        "status": record["status"],
                        **record["metrics"],
                        **record["costs"],
                    }
                )
        fields = list(dict.fromkeys(key for line in lines for key in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields)
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(Path(path), text.getvalue().encode())


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, since JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("logitkit", "torch", "numpy", "scikit-learn", "accelerate", "optuna", "torchmetrics"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
