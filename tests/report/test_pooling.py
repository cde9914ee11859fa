"""Adding up over seeds keeps counts and means."""

from __future__ import annotations

import math

import pytest

from logitkit.report.numbers import decimals, interval, p_value, text
from logitkit.report.pooling import mean_curve, pooled_histogram, pooled_reliability, unit_scale


def test_reliability_is_weighted_by_count():
    pooled = pooled_reliability(
        [
            {"confidence": [0.0, 0.6], "accuracy": [0.0, 0.5], "count": [0.0, 1.0]},
            {"confidence": [0.0, 0.8], "accuracy": [0.0, 0.9], "count": [0.0, 3.0]},
        ]
    )
    assert pooled is not None
    assert pooled["count"] == [4.0]
    assert pooled["confidence"] == pytest.approx([0.75])
    assert pooled["accuracy"] == pytest.approx([0.8])
    assert pooled["middle"] == pytest.approx([0.75])
    assert pooled_reliability([]) is None


def test_histograms_keep_every_example_when_edges_differ():
    pooled = pooled_histogram(
        [
            {"edges": [0.0, 1.0, 2.0], "inside": [4, 0], "outside": [0, 1]},
            {"edges": [2.0, 3.0, 4.0], "inside": [0, 12], "outside": [1, 0]},
        ]
    )
    assert pooled is not None
    assert pooled["edges"] == [0.0, 2.0, 4.0]
    assert pooled["inside"] == pytest.approx([0.25, 0.75])
    assert pooled["outside"] == pytest.approx([0.5, 0.5])


def test_histogram_bins_are_divided_by_overlap():
    pooled = pooled_histogram(
        [
            {"edges": [0.0, 2.0, 4.0], "inside": [1, 1], "outside": [1, 1]},
            {"edges": [1.0, 3.0, 5.0], "inside": [2, 0], "outside": [2, 0]},
        ]
    )
    assert pooled is not None
    # 2.5 is the middle of the common range: (1 + 0.25 + 1.5, 0.75 + 0.5) of 4
    assert pooled["inside"] == pytest.approx([2.75 / 4, 1.25 / 4])


def test_curves_that_stop_early_are_averaged_where_half_of_them_are():
    short = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    long = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 4.0}, {"step": 3, "loss": 5.0}]
    assert mean_curve([short, long], "loss") == ([1, 2, 3], [2.0, 3.0, 5.0])
    assert mean_curve([short, short, long], "loss")[0] == [1, 2]
    assert mean_curve([[{"step": 1, "loss": None}]], "loss") == ([], [])
    assert mean_curve([], "loss") == ([], [])


def test_unit_scale():
    assert unit_scale([4.0, 0.0, -4.0, -2.0]) == [1.0, 0.5, 0.0, 0.25]
    assert unit_scale([1.0, 2.0]) == [0.0, 0.0]


def test_numbers():
    assert decimals([0.97, 0.5]) == 3
    assert decimals([49.9]) == 2
    assert decimals([408.1]) == 1
    assert decimals([26122]) == 0
    assert decimals([0.012, math.nan]) == 4
    assert decimals([]) == 3
    assert text(-0.0001, 3, sign=True) == "0.000"
    assert text(-1234.5, 1) == "−1,234.5"
    assert text(math.nan, 2) == "–"
    assert interval(0.1, 0.2, 2, sign=True) == "[+0.10, +0.20]"
    assert interval(math.nan, math.nan, 2) == ""
    assert [p_value(p) for p in (0.0004, 0.0123, 0.35, math.nan)] == ["< 0.001", "0.012", "0.35", "–"]
