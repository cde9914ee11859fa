"""What a difference between two arms amounts to, when there are five seeds.

Runs of one recipe on overlapping splits of one data set are not independent, so the ordinary paired t-test
calls far too many differences real. The variance-corrected resampled t-test (Nadeau and Bengio, "Inference
for the Generalization Error", Machine Learning 52, 2003, section 5) widens the variance of the mean
difference from s^2 / J to s^2 (1/J + n_test / n_train), with J splits. Holm's procedure (1979) then keeps
the chance of any false call over all comparisons at alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["better", "worse", "no difference shown", "too few runs"]
ALPHA = 0.05


@dataclass(frozen=True)
class Effect:
    """Difference from the reference arm: mean with its 95 % interval, and the p-value that it is zero."""

    mean: float
    low: float
    high: float
    p: float


def paired_effect(
    arm: Sequence[float], reference: Sequence[float], test_to_train: float, resolution: float = 0.0
) -> Effect | None:
    """Corrected resampled t-test of `arm - reference`, paired by position.

    test_to_train: rows of the test split over rows the run learned from.
    resolution:    smallest step the metric can take (1 / test rows for an accuracy). A spread below what
                   rounding to it alone gives (resolution^2 / 12) is not evidence, so it is the floor of
                   the variance.

    None with fewer than 2 pairs. Pairs that all differ by the same amount leave no variance to weigh it
    against: p = 1, with no interval (NaN) unless the difference is 0.
    """
    difference = np.asarray(arm, dtype=float) - np.asarray(reference, dtype=float)
    n = len(difference)
    if n < 2:
        return None
    mean = float(difference.mean())
    tiny = 1e-12 * float(np.abs([arm, reference]).max())
    variance = max(float(difference.var(ddof=1)), resolution**2 / 12)
    if abs(mean) <= tiny and variance <= max(tiny**2, resolution**2 / 12):
        return Effect(mean, mean, mean, 1.0)
    if variance <= tiny**2:
        return Effect(mean, math.nan, math.nan, 1.0)
    scale = math.sqrt(variance * (1 / n + test_to_train))
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * scale
    return Effect(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / scale, n - 1)))


def mean_interval(values: Sequence[float], test_to_train: float) -> tuple[float, float, float]:
    """Mean of one arm and its 95 % interval, with the same correction; (mean, nan, nan) for one value."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - ALPHA / 2, len(x) - 1)) * math.sqrt(
        float(x.var(ddof=1)) * (1 / len(x) + test_to_train)
    )
    return mean, mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the largest (m - rank) p so far as p grows, at most 1."""
    m = len(p_values)
    adjusted = [1.0] * m
    running = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, (m - rank) * p_values[i])
        adjusted[i] = min(1.0, running)
    return adjusted


def verdict(effect: Effect | None, adjusted_p: float, higher_is_better: bool) -> Verdict:
    """What the data support at a family-wise level of 5 %."""
    if effect is None:
        return "too few runs"
    if adjusted_p >= ALPHA or effect.mean == 0:
        return "no difference shown"
    return "better" if (effect.mean > 0) == higher_is_better else "worse"
