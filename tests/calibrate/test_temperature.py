"""Temperature scaling: the optimum, a brute-force search, and data without one."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.calibrate import TemperatureScaling


def sample(n=500, classes=4, sharpness=3.0, seed=0):
    """Labels drawn from softmax(z), logits reported `sharpness` times too large."""
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]
    return sharpness * z, y


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 1e4])
def test_gradient_vanishes_at_the_answer_whatever_the_scale(scale):
    z, y = sample()
    log_t = (TemperatureScaling().fit(scale * z, y).temperature / scale).log().requires_grad_()
    F.cross_entropy(z / log_t.exp(), y).backward()
    assert abs(log_t.grad) < 1e-12


def test_it_is_the_brute_force_minimum_and_undoes_overconfidence():
    z, y = sample(4000)
    t = TemperatureScaling().fit(z, y).temperature
    grid = torch.linspace(2, 4, 101, dtype=torch.float64)
    nll = torch.stack([F.cross_entropy(z / g, y) for g in grid])
    assert abs(t - grid[nll.argmin()]) <= 0.01
    assert t.item() == pytest.approx(3.0, rel=0.1)


def test_transform_is_softmax_of_scaled_logits_in_at_least_float32():
    z, y = sample()
    fitted = TemperatureScaling().fit(z, y)
    torch.testing.assert_close(fitted.transform(z), (z / fitted.temperature).softmax(1))
    assert fitted.transform(z.float()).dtype == torch.float32
    assert fitted.transform(z.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(
        TemperatureScaling().fit(z.float(), y).temperature, fitted.temperature, rtol=1e-5, atol=0
    )


def test_unfitted_is_plain_softmax_and_fit_ignores_row_shifts():
    z, y = sample()
    torch.testing.assert_close(TemperatureScaling().transform(z), z.softmax(1))
    shifted = z + 100 * torch.randn(len(z), 1, dtype=torch.float64)
    torch.testing.assert_close(
        TemperatureScaling().fit(shifted, y).temperature, TemperatureScaling().fit(z, y).temperature
    )


def test_separable_logits_meet_the_lower_bound():
    z = torch.randn(50, 3)
    spread = (z - z.mean(1, keepdim=True)).square().mean().sqrt()
    fitted = TemperatureScaling().fit(z, z.argmax(1))
    assert fitted.temperature.item() == pytest.approx(spread.item() / 100, rel=1e-5)
    assert torch.isfinite(fitted.transform(z)).all()


def test_logits_worse_than_chance_meet_the_upper_bound():
    z = torch.randn(50, 3)
    fitted = TemperatureScaling().fit(z, z.argmin(1))
    assert fitted.transform(z).max() < 0.36
    assert TemperatureScaling().fit(torch.zeros(5, 3), torch.zeros(5).long()).temperature == 1


def test_infinite_logits_are_refused():
    with pytest.raises(ValueError, match="finite, got 1 that"):
        TemperatureScaling().fit(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))
