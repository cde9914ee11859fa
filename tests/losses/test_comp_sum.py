import numpy as np
import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import CompSum, CompSumTransform, comp_sum

LOGITS = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(9) % 4
P = LOGITS.softmax(-1)[torch.arange(9), LABELS]


def test_members_of_the_family():
    torch.testing.assert_close(CompSum(1.0)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))
    torch.testing.assert_close(comp_sum(LOGITS, LABELS, 2.0), 1 - P)
    torch.testing.assert_close(comp_sum(LOGITS, LABELS, 1.7), (1 - P**0.7) / 0.7)
    torch.testing.assert_close(comp_sum(LOGITS, LABELS, 0.0), 1 / P - 1)


def test_continuous_at_tau_1():
    for tau in (1 - 1e-4, 1 + 1e-4):
        assert (comp_sum(LOGITS, LABELS, tau) + P.log()).abs().max() < 1e-3


def test_refuses_a_negative_tau():
    with pytest.raises(ValueError, match=r"tau must be at least 0, got -0\.1"):
        CompSum(-0.1)


def phi(u, tau):
    return np.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
def test_transform_is_the_least_excess_risk_of_a_wrong_prediction(tau):
    """Two classes, P(1) = (1 + b) / 2: over a grid of margins m = h_1 - h_2, the best surrogate risk with
    m <= 0 (the wrong side) less the best one of all is T(b); beyond tau = 2, T(b) is only a bound."""
    m = np.linspace(-40, 40, 80_001)
    transform = CompSumTransform(tau, 2)
    for b in (0.1, 0.5, 0.9):
        risk = (1 + b) / 2 * phi(np.exp(-m), tau) + (1 - b) / 2 * phi(np.exp(m), tau)
        excess = risk[m <= 0].min() - risk.min()
        value = transform(torch.tensor(b, dtype=torch.float64)).item()
        assert value == pytest.approx(excess, abs=1e-4) if tau <= 2 else 0 < value <= excess


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_inverse_undoes_the_transform(tau):
    transform = CompSumTransform(tau, 5)
    b = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(transform(b)), b, atol=1e-7, rtol=0)
    assert transform.inverse(2 * transform(b[-1:])).item() == 1
