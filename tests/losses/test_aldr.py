import math

import pytest
import torch

from logitkit.losses import ALDRKL, ldr_kl

LOGITS = torch.tensor([[1.5, -0.5, 0.25, 2.0], [-1.0, 0.75, 3.0, -2.5], [0.1, 0.2, -0.3, 0.4]])
TARGET, IDS = torch.tensor([3, 1, 2]), torch.tensor([4, 0, 2])


def test_three_visits_of_the_official_code():
    """ALDRLoss_V1(5, threshold=0.1, Lambda=1, alpha=2) of github.com/Optimization-AI/ICML2023_LDR, which
    adds 1e-5 to each probability of the update: hence the tolerance."""
    loss = ALDRKL(5, lam0=1.0)
    values = [loss(LOGITS, TARGET, IDS).item() for _ in range(3)]
    assert values == pytest.approx([0.6062243581, 0.6088004112, 0.6092200875], abs=1e-5)
    lam = [0.7445479035, 1.0, 0.8698260784, 1.0, 0.8689795137]
    torch.testing.assert_close(loss.lam, torch.tensor(lam), atol=1e-4, rtol=0)


def test_update_reaches_the_stationary_temperature():
    """At margin 0, 200 visits end where a grid search finds the objective stationary in lam."""
    lam0, alpha = 2.0, 1.5
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.arange(5)
    part = ALDRKL(5, lam0, alpha, margin=0.0, normalize=False, reduction="none")
    for _ in range(200):
        value = part(logits, y, torch.arange(5))

    def objective(lam):
        penalty = alpha * math.log(6) / (2 * lam0) * (lam - lam0) ** 2
        return ldr_kl(logits.repeat_interleave(lam.shape[1], 0), y.repeat_interleave(lam.shape[1]),
                      lam.flatten()).view(lam.shape) - penalty  # fmt: skip

    grid = torch.linspace(lam0 * (1 - 1 / alpha), lam0, 4001, dtype=torch.float64).expand(5, -1)
    slope = objective(grid).diff(dim=1).abs()
    stationary = grid.gather(1, slope.argmin(1, keepdim=True))[:, 0]
    torch.testing.assert_close(part.lam.double(), stationary, atol=1e-3, rtol=0)
    torch.testing.assert_close(value, objective(part.lam.double()[:, None])[:, 0], atol=1e-6, rtol=0)


def test_lam_belongs_to_the_example_and_to_training():
    part = ALDRKL(6, lam0=1.0)
    before = part.lam.clone()
    part.eval()(LOGITS, TARGET, IDS)
    assert torch.equal(part.lam, before)
    part.train()(LOGITS, TARGET, IDS)
    untouched = torch.ones(6, dtype=torch.bool)
    untouched[IDS] = False
    assert torch.equal(part.lam[untouched], before[untouched])
    assert (part.lam[IDS] < 1).all()
    assert (part.lam >= 1 - 1 / 2).all()
    assert not part.lam.requires_grad


def test_less_certain_means_closer_to_lam0():
    part = ALDRKL(2, lam0=1.0, normalize=False)
    part(torch.tensor([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert part.lam[0] < 0.6 < 0.99 < part.lam[1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 1, 5]), "hold 5"),
        (torch.tensor([0, 1]), r"shape \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "float32"),
    ],
)
def test_refuses_bad_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        ALDRKL(5)(LOGITS, TARGET, ids)


def test_refuses_an_alpha_that_lets_lam_reach_zero():
    with pytest.raises(ValueError, match="alpha must be greater than 1, got 1"):
        ALDRKL(5, alpha=1)
