"""The kernel estimate against a double loop and its limits."""

import math

import pytest
import torch

from logitkit.probe import AdaptiveKDE


def loop(t, scale, v):
    n = len(t)
    total = 0.0
    for a in t:
        total += math.log2(sum(math.exp(-(math.dist(a, b) ** 2) / (scale * v)) for b in t) / n)
    return -total / n


@pytest.mark.parametrize(("bound", "scale"), [("upper", 2), ("lower", 8)])
def test_double_loop(bound, scale):
    g = torch.Generator().manual_seed(0)
    t = torch.randn(40, 3, generator=g, dtype=torch.float64)
    y = torch.randint(2, (40,), generator=g)
    v = 0.1 * float(t.abs().max())
    known = AdaptiveKDE(0.1, bound)(t, y)
    parts = [t[y == k].tolist() for k in range(2)]
    within = sum(len(p) / 40 * loop(p, scale, v) for p in parts)
    assert known.input == pytest.approx(loop(t.tolist(), scale, v))
    assert known.label == pytest.approx(known.input - within)


def test_rows_far_apart_and_rows_alike():
    far = torch.arange(64.0)[:, None] * 100
    assert AdaptiveKDE()(far).input == pytest.approx(6)
    assert AdaptiveKDE()(torch.ones(64, 3)).input == pytest.approx(0, abs=1e-12)
    assert AdaptiveKDE()(torch.zeros(64, 3), torch.arange(64) % 2) == (0, 0)


def test_the_lower_bound_is_lower():
    t = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    assert AdaptiveKDE(bound="lower")(t).input < AdaptiveKDE(bound="upper")(t).input


def test_chunks_do_not_change_the_value(monkeypatch):
    t = torch.randn(100, 2, generator=torch.Generator().manual_seed(2))
    whole = AdaptiveKDE()(t).input
    monkeypatch.setattr("logitkit.probe.adaptive_kde.CHUNK", 7)
    assert AdaptiveKDE()(t).input == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"v0": 0}, "positive, got 0"), ({"bound": "middle"}, "'upper' or 'lower', got 'middle'")],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        AdaptiveKDE(**settings)
