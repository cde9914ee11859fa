import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import LDRKL, ldr_kl

F6 = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y6 = torch.tensor([0, 3, 5, 2])


def gaps(margin):
    wrong = 1 - F.one_hot(Y6, 6)
    return F6 - F6.gather(1, Y6[:, None]) + margin * wrong


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_closed_form_is_the_worst_label_distribution(lam):
    """Against ascent on p over the simplex (multiplicative steps) of p . gaps - lam KL(p || 1/K)."""
    g, log_p = gaps(0.5), torch.full((4, 6), -math.log(6), dtype=torch.float64)
    for _ in range(200):
        log_p = log_p + 0.3 / lam * (g - lam * (log_p + 1))
        log_p = log_p - log_p.logsumexp(1, keepdim=True)
    p = log_p.exp()
    worst = (p * g).sum(1) - lam * (p * (log_p + math.log(6))).sum(1)
    torch.testing.assert_close(ldr_kl(F6, Y6, lam, 0.5), worst, atol=1e-5, rtol=0)


def test_limits():
    torch.testing.assert_close(ldr_kl(F6, Y6, 1e-3, 1.0), gaps(1.0).amax(1), atol=1e-2, rtol=0)
    torch.testing.assert_close(ldr_kl(F6, Y6, 1e4, 1.0), gaps(1.0).mean(1), atol=1e-3, rtol=0)
    cross_entropy = F.cross_entropy(F6, Y6, reduction="none")
    torch.testing.assert_close(ldr_kl(F6, Y6, 1.0, 0.0), cross_entropy - math.log(6))


@pytest.mark.parametrize(("margin", "lam", "expected"), [(2.0, 1.0, 1.857200027), (0.1, 0.5, 0.366639644)])
def test_value_of_the_official_code(margin, lam, expected):
    """LDRLoss_V1 of github.com/Optimization-AI/ICML2023_LDR on this input."""
    logits = torch.tensor([[1.5, -0.5, 0.25, 2.0], [-1.0, 0.75, 3.0, -2.5], [0.1, 0.2, -0.3, 0.4]])
    loss = LDRKL(lam, margin)(logits, torch.tensor([3, 1, 2]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_refuses_bad_hyperparameters():
    with pytest.raises(ValueError, match="lam must be positive, got 0"):
        LDRKL(lam=0)
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        LDRKL(margin=-1)
