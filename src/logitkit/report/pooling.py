"""Runs of one arm made one: bins and histograms added up over seeds, curves averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from logitkit.report.numbers import number


def pooled_reliability(bins: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]] | None:
    """Reliability bins of several seeds as if all their test rows were one set; empty bins are left out."""
    if not bins:
        return None
    count = np.array([b["count"] for b in bins], dtype=float)
    total = count.sum(0)
    kept = total > 0
    middles = (np.arange(len(total)) + 0.5) / len(total)
    pooled = {"count": total[kept].tolist(), "middle": middles[kept].tolist()}
    for name in ("confidence", "accuracy"):
        weighted = (np.array([b[name] for b in bins], dtype=float) * count).sum(0)
        pooled[name] = (weighted[kept] / total[kept]).tolist()
    return pooled


def unit_scale(values: Sequence[float]) -> list[float]:
    """A falling curve with its first value at 1 and its lowest at 0; zeros for one that never falls."""
    fall = values[0] - min(values)
    return [(v - min(values)) / fall if fall > 0 else 0.0 for v in values]


def pooled_histogram(histograms: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
    """Score histograms of several seeds on common bins, as shares of each side's examples.

    Each seed has edges of its own. The common bins span all of them, as many as the first seed has, and an
    old bin's count is divided over the new ones in proportion to the overlap.
    """
    if not histograms:
        return None
    low = min(h["edges"][0] for h in histograms)
    high = max(h["edges"][-1] for h in histograms)
    edges = np.linspace(low, high, len(histograms[0]["edges"]))
    pooled = {"edges": edges.tolist()}
    for side in ("inside", "outside"):
        counts = np.sum([_rebin(np.array(h["edges"]), np.array(h[side]), edges) for h in histograms], axis=0)
        pooled[side] = (counts / max(counts.sum(), 1.0)).tolist()
    return pooled


def _rebin(old: np.ndarray, counts: np.ndarray, new: np.ndarray) -> np.ndarray:
    cumulative = np.concatenate([[0.0], np.cumsum(counts, dtype=float)])
    return np.diff(np.interp(new, old, cumulative))


def mean_curve(curves: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[list[float], list[float]]:
    """Steps and the mean over runs of `key` at them.

    Runs may have recorded different steps and stopped at different ones: each is interpolated between its
    own points, and a step counts while at least half of the runs reach it.
    """
    points = []
    for curve in curves:
        pairs = [(number(p.get("step")), number(p.get(key))) for p in curve]
        pairs = [(step, value) for step, value in pairs if math.isfinite(step) and math.isfinite(value)]
        if pairs:
            points.append(tuple(np.array(pairs).T))
    if not points:
        return [], []
    steps = np.unique(np.concatenate([x for x, _ in points]))
    values = np.array([np.interp(steps, x, y, left=np.nan, right=np.nan) for x, y in points])
    enough = np.isfinite(values).sum(0) >= max(1, len(points) / 2)
    return steps[enough].tolist(), np.nanmean(values[:, enough], axis=0).tolist()
