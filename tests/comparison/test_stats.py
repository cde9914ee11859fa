"""The comparison never says more than the data do, and finds what is plainly there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from logitkit.comparison.stats import holm, mean_interval, paired_effect, verdict

# 300 studies would leave the rates uncertain by 1.5 points; these are enough to tell 5 % from 7 %.
STUDIES, SEEDS = 1500, 5
TEST_TO_TRAIN = 0.25  # 20 % test rows, 80 % training and validation


def call(arms: np.ndarray, resolution: float = 0.0) -> list[str]:
    """Verdicts of arms (arms, seeds) against the first."""
    effects = [paired_effect(a, arms[0], TEST_TO_TRAIN, resolution) for a in arms[1:]]
    return [verdict(e, p, True) for e, p in zip(effects, holm([e.p for e in effects]), strict=True)]


def test_without_correction_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    ours, theirs = paired_effect(a, b, 0.0), scipy_stats.ttest_rel(a, b)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-12)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_correction_widens_the_interval_by_the_published_factor():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 5))
    plain, wide = paired_effect(a, b, 0.0), paired_effect(a, b, 0.25)
    assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(math.sqrt((1 / 5 + 0.25) * 5))


def test_mean_interval_of_one_value_has_no_width():
    assert mean_interval([0.5], 0.25)[0] == 0.5
    assert all(math.isnan(v) for v in mean_interval([0.5], 0.25)[1:])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


@pytest.mark.parametrize("arms", [2, 6])
def test_equal_arms_are_rarely_called_different(arms):
    """Studies of equal arms whose runs share their seed's and their split's luck."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(STUDIES):
        split_luck = rng.normal(size=SEEDS)
        scores = 0.9 + 0.01 * split_luck + 0.005 * rng.normal(size=(arms, SEEDS))
        false += any(v != "no difference shown" for v in call(scores))
    assert false / STUDIES <= 0.07


def test_a_planted_three_sigma_effect_is_found():
    """An effect of three standard deviations of the paired differences."""
    rng = np.random.default_rng(3)
    sigma = 0.005 * math.sqrt(2)
    found = 0
    for _ in range(STUDIES):
        scores = 0.9 + 0.01 * rng.normal(size=SEEDS) + 0.005 * rng.normal(size=(2, SEEDS))
        scores[1] += 3 * sigma
        found += call(scores) == ["better"]
    assert found / STUDIES >= 0.90


def test_equal_learners_on_overlapping_splits_are_rarely_called_different():
    """Real studies: least squares on one half of the features against the other half. All features are
    equally informative, so the arms are equally good; but in each small data set one half looks better, on
    all of its overlapping splits alike. An uncorrected paired test calls that real in every eighth study."""
    rng = np.random.default_rng(4)
    n, d, test = 150, 20, 30
    false = uncorrected = 0
    for _ in range(STUDIES):
        y = rng.choice([-1.0, 1.0], n)
        x = rng.normal(size=(n, d)) + 0.3 * y[:, None]
        scores = np.empty((2, SEEDS))
        for seed in range(SEEDS):
            order = rng.permutation(n)
            for arm, half in enumerate((slice(0, d // 2), slice(d // 2, d))):
                weights = np.linalg.lstsq(x[order[test:], half], y[order[test:]], rcond=None)[0]
                scores[arm, seed] = np.mean(np.sign(x[order[:test], half] @ weights) == y[order[:test]])
        false += call(scores, resolution=1 / test) != ["no difference shown"]
        uncorrected += paired_effect(scores[1], scores[0], 0.0).p < 0.05
    assert false / STUDIES <= 0.07
    assert uncorrected / STUDIES > 0.1, f"the problem is too easy to show anything: {uncorrected}"


def test_no_variance_is_no_evidence():
    assert paired_effect([0.5, 0.5], [0.4, 0.4], 0.25).p == 1.0
    assert paired_effect([0.5, 0.5], [0.5, 0.5], 0.25).p == 1.0
    one_row_each = paired_effect([0.51, 0.51], [0.5, 0.5], 0.25, resolution=0.01)
    assert verdict(one_row_each, one_row_each.p, True) == "no difference shown"


def test_one_seed_is_too_few():
    assert paired_effect([0.9], [0.1], 0.25) is None
    assert verdict(None, 1.0, True) == "too few runs"


def test_the_direction_follows_the_metric():
    effect = paired_effect([1.0, 1.1, 1.2], [0.1, 0.2, 0.25], 0.25)
    assert verdict(effect, 0.01, True) == "better"
    assert verdict(effect, 0.01, False) == "worse"
