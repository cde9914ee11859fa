"""A comparison's results in the shape that the report reads: arms in ranking order, each with its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitkit.report.numbers import number

# what varies -> one of them, several of them
NOUNS = {
    "model": ("model", "models"), "head": ("head", "heads"), "softmax": ("normaliser", "normalisers"),
    "loss": ("loss", "losses"), "algorithm": ("algorithm", "algorithms"),
    "optimizer": ("optimizer", "optimizers"), "detect": ("detector", "detectors"),
    "attention": ("attention", "attentions"), "layers": ("layer", "layers"),
    "calibrate": ("calibrator", "calibrators"), "adapt": ("way to adapt", "ways to adapt"),
    "search": ("search", "searches"),
}  # fmt: skip
EXAMPLES = {"image": "images", "tokens": "texts", "boxes": "images"}


@dataclass(frozen=True)
class Arm:
    """One recipe of the comparison.

    index: its position as the user wrote it; 0 is the reference. It fixes colour and symbol.
    name:  what tells it from the others: the label without the slot names.
    row:   its line of the ranking. runs: what was recorded of it, by seed, diverged runs included.
    """

    index: int
    name: str
    label: str
    recipe: Mapping[str, Any]
    row: Mapping[str, Any]
    runs: tuple[Mapping[str, Any], ...]

    @cached_property
    def done(self) -> list[Mapping[str, Any]]:
        """The runs that have a result."""
        return [run for run in self.runs if run["status"] == "done"]

    @property
    def is_reference(self) -> bool:
        return self.index == 0

    @property
    def mean(self) -> float:
        return number(self.row["mean"])

    @property
    def limits(self) -> tuple[float, float]:
        """The 95 % interval of the mean; NaN with fewer than two runs."""
        return number(self.row["low"]), number(self.row["high"])

    @property
    def difference(self) -> tuple[float, float, float]:
        """Difference from the reference and its 95 % interval; NaN where there is none."""
        effect = self.row["effect"]
        if effect is None:
            return math.nan, math.nan, math.nan
        return number(effect["mean"]), number(effect["low"]), number(effect["high"])

    @property
    def verdict(self) -> str:
        return str(self.row["verdict"])

    def values(self, metric: str) -> list[float]:
        """The metric of each finished run that has it, in order of seed."""
        found = [number(run["metrics"].get(metric)) for run in self.done]
        return [v for v in found if math.isfinite(v)]


class Study:
    """`Comparison.to_dict()`, read. NaN and None both mean that there is no number."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        about = results["study"]
        self.about: Mapping[str, Any] = about
        self.data: Mapping[str, Any] = about["data"]
        self.metric: str = about["metric"]
        self.better_is_higher: bool = about["higher_is_better"]
        self.seeds: int = about["seeds"]
        self.tune: int = about["tune"]
        self.varied: list[str] = list(about["varied"])
        runs: dict[int, list[Mapping[str, Any]]] = {}
        for run in results["runs"]:
            runs.setdefault(run["arm"], []).append(run)
        self.arms = [
            Arm(
                index=row["arm"],
                name=short_name(row["label"], self.varied),
                label=row["label"],
                recipe=results["arms"][row["arm"]]["recipe"],
                row=row,
                runs=tuple(sorted(runs.get(row["arm"], []), key=lambda run: run["seed"])),
            )
            for row in sorted(results["ranking"], key=lambda row: row["rank"])
        ]

    @property
    def task(self) -> str:
        return str(self.data["task"])

    @cached_property
    def reference(self) -> Arm:
        return next(arm for arm in self.arms if arm.is_reference)

    @cached_property
    def ranked(self) -> list[Arm]:
        """The arms with at least one finished run, best first."""
        return [arm for arm in self.arms if math.isfinite(arm.mean)]

    @property
    def other_metrics(self) -> list[str]:
        """Every metric but the primary one that some arm has, in the task's order."""
        return [
            name
            for name in self.about["metrics"]
            if name != self.metric and any(name in arm.row["means"] for arm in self.arms)
        ]

    def noun(self, many: bool = False) -> str:
        """What is compared: losses if only the loss varies, recipes if several things do."""
        one = self.varied[0] if len(self.varied) == 1 else ""
        return NOUNS.get(one, ("recipe", "recipes"))[many]

    @property
    def examples(self) -> str:
        return EXAMPLES.get(str(self.data["kind"]), "rows")


def short_name(label: str, varied: list[str]) -> str:
    """`"loss=ldr, head=cosine"` -> `"ldr + cosine"`. Parts speak for themselves, numbers do not: `lr=0.1`."""
    if not varied:
        return label.removeprefix("loss=")
    values, rest = [], f", {label}"
    for slot, following in zip(varied, [*varied[1:], None], strict=True):
        start = f", {slot}="
        if slot not in NOUNS or not rest.startswith(start):
            return label
        end = len(rest) if following is None else rest.find(f", {following}=", len(start))
        values.append(rest[len(start) : end])
        rest = rest[end:]
    return " + ".join(values)
