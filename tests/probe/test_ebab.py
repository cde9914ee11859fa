"""Adaptive bins against sorting by hand, and what they must not depend on."""

import math
from collections import Counter

import pytest
import torch

from logitkit.probe import EBAB


def by_hand(t, y, bins):
    values = sorted({v for row in t for v in row})
    edges = sorted({values[k * len(values) // bins] for k in range(1, bins)})
    codes = [tuple(sum(v >= e for e in edges) for v in row) for row in t]

    def entropy(items):
        n = len(items)
        return -sum(c / n * math.log2(c / n) for c in Counter(items).values())

    within = 0.0
    for label in set(y):
        rows = [c for c, k in zip(codes, y, strict=True) if k == label]
        within += len(rows) / len(y) * entropy(rows)
    return entropy(codes), entropy(codes) - within


@pytest.mark.parametrize("bins", [2, 7, 30])
def test_sorting_by_hand(bins):
    g = torch.Generator().manual_seed(bins)
    t = torch.randn(120, 2, generator=g, dtype=torch.float64).relu()  # zeros repeat
    y = torch.randint(3, (120,), generator=g)
    known = EBAB(bins)(t, y)
    assert tuple(known) == pytest.approx(by_hand(t.tolist(), y.tolist(), bins))


def test_increasing_maps_and_the_order_of_rows_change_nothing():
    g = torch.Generator().manual_seed(0)
    t = torch.randn(500, 3, generator=g, dtype=torch.float64)
    y = torch.randint(4, (500,), generator=g)
    known = EBAB()(t, y)
    assert EBAB()(t.exp(), y) == known
    assert EBAB()(5 * t**3 - 2, y) == known
    order = torch.randperm(500, generator=g)
    assert tuple(EBAB()(t[order], y[order])) == pytest.approx(tuple(known), abs=1e-12)


@pytest.mark.parametrize("m", [2, 5, 16])
def test_rows_of_m_kinds_have_log2_m_bits(m):
    t = torch.arange(m).double().repeat(10)[:, None] * 3
    assert EBAB()(t).input == pytest.approx(math.log2(m))


def test_zeros_do_not_swallow_the_bins():
    """Nine of ten values are 0: the others still have a bin for each tenth of them."""
    t = torch.zeros(1000, 1)
    t[:99, 0] = torch.arange(1, 100)
    shares = [0.91, *[0.01] * 9]  # 100 different values, ten to a bin: 0 and the nine smallest in the first
    assert EBAB(10)(t).input == pytest.approx(-sum(p * math.log2(p) for p in shares))


def test_one_bin_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        EBAB(1)
