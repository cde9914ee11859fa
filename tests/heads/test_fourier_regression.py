"""The Fourier head for regression against numerical integration, and on targets with two values."""

import math

import pytest
import torch

from logitkit.heads import FourierRegressionHead


def head_and_scores(rows=6, frequencies=4, **settings):
    torch.manual_seed(0)
    head = FourierRegressionHead(3, vmin=-2.0, vmax=6.0, frequencies=frequencies, **settings).double()
    return head, torch.randn(rows, 2 * (frequencies + 1), dtype=torch.float64)


def grid_density(head, scores):
    """The density on a fine grid of targets, from the loss."""
    t = torch.linspace(-2, 6, 4001, dtype=torch.float64)
    rows = [(-head.loss(row.expand(len(t), -1), t, reduction="none")).exp() for row in scores]
    return t, torch.stack(rows)


def test_loss_is_a_density_in_the_targets_units():
    head, scores = head_and_scores()
    t, density = grid_density(head, scores)
    integral = torch.trapezoid(density, t, dim=1)
    torch.testing.assert_close(integral, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-8)


def test_prediction_is_the_mean():
    head, scores = head_and_scores()
    t, density = grid_density(head, scores)
    torch.testing.assert_close(
        head.predict(scores), torch.trapezoid(density * t, t, dim=1), rtol=0, atol=1e-5
    )


def test_penalty_is_added():
    head, scores = head_and_scores(2, 1, gamma=0.5)
    plain, _ = head_and_scores(2, 1)
    re, im = scores[:, :2], scores[:, 2:]
    c1 = torch.complex(re[:, 0], -im[:, 0]) * torch.complex(re[:, 1], im[:, 1])
    expected = 0.5 * 4 * math.pi**2 * c1.abs().square().mean()
    t = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(head.loss(scores, t) - plain.loss(scores, t), expected)


def test_targets_outside_are_clamped_and_columns_accepted():
    head, scores = head_and_scores(2)
    outside, border = torch.tensor([-9.0, 99.0]).double(), torch.tensor([-2.0, 6.0]).double()
    torch.testing.assert_close(head.loss(scores, outside[:, None]), head.loss(scores, border))
    assert head.loss(scores.bfloat16(), border.bfloat16()).dtype == torch.float32


def test_training_finds_both_values_of_a_coin():
    torch.manual_seed(0)
    head = FourierRegressionHead(1, vmin=-2.0, vmax=2.0, frequencies=6)
    t = torch.tensor([-1.0, 1.0]).repeat(32) + 0.1 * torch.randn(64)
    x = torch.ones(64, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(head(x), t).backward()
        optimizer.step()
    middle, sides = head.pdf(x[:1], torch.tensor([0.0])), head.pdf(x[:1], torch.tensor([-0.5, 0.5]))
    assert (sides > 5 * middle).all()
    assert head.predict(head(x[:1])).item() == pytest.approx(t.mean().item(), abs=0.15)


@pytest.mark.parametrize("bad", [{"vmin": 1.0, "vmax": 1.0}, {"gamma": -1.0}, {"frequencies": 1.5}], ids=str)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FourierRegressionHead(3, **{"vmin": 0.0, "vmax": 1.0, **bad})


def test_bad_input():
    head, scores = head_and_scores()
    with pytest.raises(ValueError, match="10 columns"):
        head.predict(scores[:, :9])
    with pytest.raises(ValueError, match="NaN"):
        head.loss(scores, torch.full((6,), torch.nan))
