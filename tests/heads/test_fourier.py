"""The Fourier head against loops over complex numbers, scipy, and numbers of the authors' code."""

import cmath
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from logitkit.heads import FourierHead, autocorrelation, fourier_density, fourier_penalty, smoothness


def coefficients(rows=5, frequencies=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2 * (frequencies + 1), generator=generator, dtype=torch.float64)


def by_loops(row):
    """c_k of one row of coefficients."""
    half = len(row) // 2
    a = [complex(row[i], row[half + i]) for i in range(half)]
    return [sum(a[i].conjugate() * a[i + k] for i in range(half - k)) for k in range(half)]


def test_values_of_the_official_code():
    """Fourier_Head of github.com/nate-gillman/fourier-head: 2 features, 5 bins, 2 frequencies, gamma 1e-3."""
    head = FourierHead(2, 5, frequencies=2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.5, -1], [1, 0.25], [-0.5, 0.75], [0.25, 0.5], [-1, 0], [0.5, 2]]))
        head.bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0, 0.4, -0.5]))
    x = torch.tensor([[1.0, 2.0], [-0.5, 0.25]])
    expected = [
        [-0.836566687, -1.895272374, -1.618022203, -2.068216562, -2.387317419],
        [-2.026652575, -2.707020760, -2.962215900, -0.981634080, -0.980465889],
    ]
    torch.testing.assert_close(head(x), torch.tensor(expected), rtol=0, atol=2e-6)
    assert 1e-3 * head.penalty(x).item() == pytest.approx(5.691358089, rel=1e-6)


def test_autocorrelation_and_penalty_are_double_loops():
    a = coefficients()
    expected = torch.tensor([by_loops(row.tolist()) for row in a], dtype=torch.complex128)
    torch.testing.assert_close(torch.complex(*autocorrelation(a)), expected)
    terms = [2 * sum(2 * math.pi**2 * k**2 * abs(c) ** 2 for k, c in enumerate(row)) for row in expected]
    assert fourier_penalty(a).item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_density_is_the_series():
    a = coefficients(2)
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for row, density in zip(a.tolist(), fourier_density(a, z), strict=True):
        c = by_loops(row)
        for point, value in zip(z.tolist(), density.tolist(), strict=True):
            terms = [(c[k] / c[0].real * cmath.exp(1j * k * math.pi * point)).real for k in range(1, len(c))]
            assert value == pytest.approx(0.5 + sum(terms), abs=1e-12)
    own = fourier_density(a, torch.stack([z, z.flip(0)]))
    torch.testing.assert_close(own[1], fourier_density(a, z.flip(0))[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_is_non_negative_and_integrates_to_one(dtype):
    z = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    density = fourier_density(coefficients(20, 12).to(dtype), z)
    assert (density >= 0).all()
    integral = torch.trapezoid(density.double(), z, dim=1)
    torch.testing.assert_close(integral, torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-5)


def test_softmax_of_the_scores_is_the_density_at_the_bin_centres():
    torch.manual_seed(0)
    head, x = FourierHead(3, 20, frequencies=5).double(), torch.randn(4, 3, dtype=torch.float64)
    edges = torch.linspace(-1, 1, 21, dtype=torch.float64)
    p = head.pdf(x, (edges[1:] + edges[:-1]) / 2)
    torch.testing.assert_close(head(x).softmax(1), p / p.sum(1, keepdim=True), rtol=0, atol=20 * 1e-5)


def test_no_frequency_is_uniform_and_so_are_no_coefficients():
    scores = FourierHead(3, 10, frequencies=0)(torch.randn(4, 3))
    torch.testing.assert_close(scores.softmax(1), torch.full((4, 10), 0.1))
    head = FourierHead(3, 10)
    torch.nn.init.zeros_(head.bias)
    scores = head(torch.zeros(1, 3, requires_grad=True))
    torch.testing.assert_close(scores.softmax(1), torch.full((1, 10), 0.1))
    scores.sum().backward()
    assert torch.isfinite(head.weight.grad).all()


def test_turned_phases_move_the_density():
    a, s = coefficients(1, 4), 0.3
    z = torch.linspace(-1, 1, 50, dtype=torch.float64)
    turn = torch.exp(-1j * torch.arange(5) * math.pi * s)
    turned = torch.complex(*a.chunk(2, dim=1)) * turn
    moved = fourier_density(torch.cat([turned.real, turned.imag], dim=1), z)
    torch.testing.assert_close(moved, fourier_density(a, z - s))


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_any_size_of_coefficients(scale):
    head = FourierHead(4, 7)
    torch.nn.init.zeros_(head.bias)
    x = torch.randn(3, 4)
    torch.testing.assert_close(head(x * scale), head(x), rtol=1e-4, atol=1e-4)


def test_smoothness_is_scipys_filter_and_the_official_number():
    """0.268709372594888 and 0.3116439161614051 by the metric of the authors' repository."""
    p = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=torch.float64)
    assert smoothness(p[None]).item() == pytest.approx(0.268709372594888, rel=1e-12)
    assert smoothness(torch.cat([p, 0 * p])[None]).item() == pytest.approx(0.3116439161614051, rel=1e-12)
    random = torch.rand(3, 17, dtype=torch.float64).softmax(1)
    expected = [
        sum(
            6 / (math.pi * s) ** 2 * np.linalg.norm(row - gaussian_filter1d(row, s, mode="wrap", radius=16))
            for s in range(1, 101)
        )
        for row in random.numpy()
    ]
    np.testing.assert_allclose(smoothness(random), expected, rtol=1e-10)
    assert smoothness(torch.full((1, 9), 1 / 9)).item() == pytest.approx(0, abs=1e-7)


def test_refuses_bad_settings():
    with pytest.raises(ValueError, match="frequencies must be a whole number"):
        FourierHead(3, 5, frequencies=-1)
    with pytest.raises(ValueError, match="eps"):
        FourierHead(3, 5, eps=0)
