"""Nearest-neighbour estimates against a literal reading of the definitions, point by point."""

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma

from logitkit.ops import conditional_mutual_information, mutual_information, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def sample(n, *widths, dtype=torch.float64, seed=0, coarse=False):
    """Correlated parts; coarse ones are full of ties and repeated points."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, generator=g, dtype=torch.float64)
    parts = [0.8 * common + torch.randn(n, d, generator=g, dtype=torch.float64) for d in widths]
    return [(2 * p).round().to(dtype) if coarse else p.to(dtype) for p in parts]


def distance(part, i):
    d = np.abs(part - part[i]).max(1)
    return np.delete(d, i)


def by_definition(parts, k, estimator):
    """Equations 8 and 9 and Frenzel and Pompe's, in float64 from distances in the parts' dtype."""
    parts = [p.numpy().reshape(len(p), -1) for p in parts]
    n, total = len(parts[0]), 0.0
    for i in range(n):
        each = [distance(p, i) for p in parts]
        joint = np.max(each, axis=0)
        r = np.sort(joint)[k - 1]
        if estimator == "ksg1":
            total += sum(digamma(float((d < r).sum()) + 1) for d in each)
        elif estimator == "ksg2":
            total += sum(digamma(float((d <= d[joint <= r].max()).sum())) for d in each)
        else:
            x, y, z = each
            spaces = (np.maximum(x, z), np.maximum(y, z), z)
            total += sum(
                s * digamma(float((d < r).sum()) + 1) for s, d in zip((1, 1, -1), spaces, strict=True)
            )
    extra = {"ksg1": digamma(n), "ksg2": digamma(n) - 1 / k, "conditional": 0.0}[estimator]
    return digamma(k) + extra - total / n


@BOTH
@pytest.mark.parametrize("widths", [(1, 1), (1, 2), (3, 3), (4, 7)])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 4), (64, 3), (131, 1), (300, 20)])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_are_those_of_the_definition(name, widths, n, k, coarse, dtype):
    x, y = sample(n, *widths, dtype=dtype, coarse=coarse)
    with use(name):
        for estimator in ("ksg1", "ksg2"):
            estimate = mutual_information(x, y, k=k, estimator=estimator)
            assert estimate == pytest.approx(by_definition((x, y), k, estimator), abs=1e-10)


@BOTH
@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (70, 3), (300, 5)])
@pytest.mark.parametrize("coarse", [False, True])
def test_conditional_estimates_are_those_of_the_definition(name, widths, n, k, coarse):
    parts = sample(n, *widths, coarse=coarse)
    with use(name):
        estimate = conditional_mutual_information(*parts, k=k)
    assert estimate == pytest.approx(by_definition(parts, k, "conditional"), abs=1e-10)


def test_implementations_agree_on_more_points_than_a_tile():
    for widths in ((1, 1), (2, 3)):
        x, y = sample(2500, *widths)
        found = []
        for name in ("cpu", "reference"):
            with use(name):
                found.append([mutual_information(x, y, estimator=e) for e in ("ksg1", "ksg2")])
        assert found[0] == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("estimator", ["ksg1", "ksg2"])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_gaussians_have_their_information(estimator, d, correlation):
    g = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 5000, d, generator=g)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    truth = -0.5 * d * math.log(1 - correlation**2)
    assert mutual_information(x, y, estimator=estimator) == pytest.approx(truth, abs=0.06)


def test_what_is_given_explains_away_a_common_cause():
    g = torch.Generator().manual_seed(2)
    z, a, b = torch.randn(3, 3000, generator=g)
    assert mutual_information(z + a, z + b) > 0.1
    assert abs(conditional_mutual_information(z + a, z + b, z)) < 0.05
    assert conditional_mutual_information(a, b, a + b) > 0.2


def test_float32_and_float64_tell_the_same_of_the_same_points():
    for widths in ((1, 1), (3, 3)):
        x, y = sample(2000, *widths, dtype=torch.float32)
        assert mutual_information(x, y) == pytest.approx(mutual_information(x.double(), y.double()), abs=1e-4)


@BOTH
def test_more_copies_of_a_point_than_k_have_no_nearer_points(name):
    x = torch.tensor([0.0] * 5 + [3.0] * 5)
    with use(name):
        assert mutual_information(x, x, k=3) == pytest.approx(digamma(3) + digamma(10) - 2 * digamma(1))
        assert mutual_information(x, x, k=3, estimator="ksg2") == pytest.approx(
            digamma(3) - 1 / 3 + digamma(10) - 2 * digamma(4)
        )


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layout_and_vectors(name, dtype):
    x, y = sample(200, 3, 1, dtype=dtype)
    with use(name):
        expected = mutual_information(x.float(), y.float())
        assert mutual_information(x.T.contiguous().T, y[:, 0]) == expected
        assert mutual_information(y[:, 0], x) == pytest.approx(expected, abs=1e-12)


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_change_nothing(name, scale):
    for widths in ((1, 1), (2, 2)):
        x, y = sample(300, *widths)
        with use(name):
            exact = mutual_information(x, y)
            assert mutual_information((x * scale).float(), (y * scale).float()) == pytest.approx(
                exact, abs=1e-4
            )


def test_the_estimate_does_not_depend_on_order_or_threads():
    for widths in ((1, 1), (2, 2)):
        x, y = sample(500, *widths)
        order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
        many = mutual_information(x, y)
        assert mutual_information(x[order], y[order]) == pytest.approx(many, abs=1e-12)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert mutual_information(x, y) == many
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (torch.zeros(5, 2, 1), torch.zeros(5), {}, r"x must have shape .* got \(5, 2, 1\)"),
        (torch.zeros(5), torch.zeros(5, 0), {}, r"y must have shape .* got \(5, 0\)"),
        (torch.zeros(5).long(), torch.zeros(5), {}, "got torch.int64"),
        (torch.zeros(5), torch.zeros(4), {}, "y must have 5 rows"),
        (torch.zeros(5), torch.zeros(5), {"k": 5}, "got 5"),
        (torch.zeros(5), torch.zeros(5), {"k": 0}, "got 0"),
        (torch.zeros(0), torch.zeros(0), {}, "the number of points, 0"),
        (torch.zeros(5), torch.tensor([0.0, 1, 2, 3, torch.nan]), {}, "y must be finite"),
        (torch.tensor([0.0, 1, 2, 3, torch.inf]), torch.zeros(5), {}, "x must be finite"),
        (torch.tensor([-3e38, 1, 2, 3, 3e38]), torch.zeros(5), {}, "x must be finite and its range"),
        (torch.zeros(5), torch.zeros(5), {"estimator": "ksg3"}, "got 'ksg3'"),
    ],
)
def test_bad_input_is_refused(x, y, more, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(x, y, **more)
