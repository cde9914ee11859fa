import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import Focal, focal


def test_equals_the_formula_and_cross_entropy_at_gamma_0():
    logits, y = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 5
    p = logits.softmax(-1)[torch.arange(8), y]
    for gamma in (0.5, 2.0, 5.0):
        torch.testing.assert_close(focal(logits, y, gamma), -((1 - p) ** gamma) * p.log())
    torch.testing.assert_close(Focal(gamma=0.0)(logits, y), F.cross_entropy(logits, y))


@pytest.mark.parametrize("gap", [-60.0, -10.0, 5.0, 15.0, 40.0])
def test_accurate_at_both_ends_in_float32(gap):
    """Two classes, label ahead by `gap`: (1-p)^2 (-log p), from exact arithmetic on exp(-gap)."""
    e = math.exp(-gap)
    exact = (e / (1 + e)) ** 2 * math.log1p(e)
    value = focal(torch.tensor([[gap, 0.0]]), torch.tensor([0])).item()
    assert value == pytest.approx(exact, rel=2e-6)


def test_gradient_stays_finite_for_gamma_below_one_at_certainty():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(Focal(gamma=0.5)(logits, torch.tensor([0])), logits)
    assert torch.isfinite(gradient).all()


def test_refuses_a_negative_gamma():
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        Focal(gamma=-1)
