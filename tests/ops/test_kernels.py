"""The building blocks of CPU kernels against NumPy."""

import numba
import numpy as np
import pytest

from logitkit.ops.kernels import exp, largest, smallest


@numba.njit
def exp_of(x, y):
    for i in range(x.size):
        y[i] = exp(x[i])


@numba.njit
def largest_of(x):
    return largest(x)


@numba.njit
def smallest_of(x):
    return smallest(x)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bound"), [(np.float32, -87, 88, 2.5e-7), (np.float64, -708, 709, 1e-15)]
)
def test_exp_is_within_its_bound_over_the_whole_range(dtype, low, high, bound):
    x = np.concatenate([np.linspace(low, high, 100_001), np.linspace(-1e-3, 1e-3, 101)]).astype(dtype)
    y = np.empty_like(x)
    exp_of(x, y)
    exact = np.exp(x.astype(np.longdouble))
    assert np.abs(y / exact - 1).max() < bound
    assert y[x == 0] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_the_ends(dtype):
    x = np.array([-np.inf, -1e30, -1000, 1000, 1e30, np.inf, np.nan, -np.nan], dtype)
    y = np.empty_like(x)
    exp_of(x, y)
    np.testing.assert_array_equal(y, np.array([0, 0, 0, np.inf, np.inf, np.inf, np.nan, np.nan], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 15, 63, 64, 65, 100, 129, 1000])
def test_the_largest_and_smallest_number(dtype, n):
    rng = np.random.default_rng(n)
    for shift in (-100, 0, 100):
        x = (rng.standard_normal(n) + shift).astype(dtype)
        assert largest_of(x) == x.max()
        assert smallest_of(x) == x.min()
    for end in (0, n - 1, n // 2):
        x = np.full(n, -np.inf, dtype)
        assert largest_of(x) == -np.inf
        x[end] = -1e30
        assert largest_of(x) == x[end]
        x[end] = np.inf
        assert largest_of(x) == np.inf
