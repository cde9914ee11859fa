"""TempNet's loss and its best temperature against their definitions, and numbers of the authors' code."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from logitkit.engine import Recipe, run
from logitkit.softmax import TempNet, solve_tau, tau_cross_entropy


def scores(rows=6, classes=8, size=3.0):
    generator = torch.Generator().manual_seed(0)
    return size * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def divergence(z, t):
    """KL(softmax(z / t) || uniform) of one row."""
    p = (z / t).softmax(0)
    return (p * (p * len(z)).log()).sum().item()


def test_values_of_the_official_code():
    """TempNet and tau_cross_entropy of github.com/zhqiu/TempNet: 4 classes, 3 hidden units, sine weights."""
    part = TempNet(4, hidden=3).eval()
    with torch.no_grad():
        parameters = (
            part.first.weight,
            part.first.bias,
            part.second.weight,
            part.second.bias,
            part.last.weight,
        )
        for i, p in enumerate(parameters, start=2):
            p.copy_(torch.sin(torch.arange(p.numel()).float() * i).view_as(p))
        part.last.bias.fill_(0.25)
    z = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.1, 0.2, -0.3]])
    tau = part.temperature(z)
    assert tau.tolist() == pytest.approx([0.6706314086914062, 0.6571836471557617], abs=1e-6)
    part.rho = 1.0
    assert part.loss(z, torch.tensor([3, 0])).item() == pytest.approx(0.23578451573848724, abs=1e-6)
    torch.testing.assert_close(part.log(z), F.log_softmax(z / tau[:, None], 1))


def test_loss_is_the_log_mean_exp():
    z, y, tau, rho = scores(), torch.arange(6), torch.linspace(0.1, 2, 6).double(), 1.1
    expected = [
        t * math.log(sum(math.exp((v - row[k]) / t) for v in row) / 8) + t * rho
        for row, k, t in zip(z.tolist(), y.tolist(), tau.tolist(), strict=True)
    ]
    torch.testing.assert_close(tau_cross_entropy(z, y, tau, rho), torch.tensor(expected).double())


def test_slope_in_tau_is_rho_minus_the_divergence():
    z, tau = scores(), torch.linspace(0.3, 2, 6).double().requires_grad_()
    (slope,) = torch.autograd.grad(tau_cross_entropy(z, torch.zeros(6).long(), tau, 1.1).sum(), tau)
    expected = [1.1 - divergence(row, t) for row, t in zip(z, tau.tolist(), strict=True)]
    assert slope.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("rho", [0.2, 0.8, 1.5])
def test_solved_temperatures_have_the_divergence_or_a_bound(rho):
    z = scores()
    low, high = 0.3, 4.0
    inside = 0
    for row, t in zip(z, solve_tau(z, rho, low, high).tolist(), strict=True):
        if low * 1.0001 < t < high * 0.9999:
            assert divergence(row, t) == pytest.approx(rho, abs=1e-5)
            inside += 1
        else:
            assert divergence(row, low) < rho or divergence(row, high) > rho
        for label in (0, 5):  # whatever the label
            found = minimize_scalar(
                lambda tau, row=row, label=label: tau_cross_entropy(
                    row[None], torch.tensor([label]), torch.tensor([tau]).double(), rho
                ).item(),
                bounds=(low, high), method="bounded", options={"xatol": 1e-8},
            )  # fmt: skip
            assert t == pytest.approx(found.x, abs=1e-4)
    assert inside


def test_extreme_rho_meets_the_bounds():
    z = scores()
    torch.testing.assert_close(solve_tau(z, 0.0), torch.full((6,), 1.2).double())
    torch.testing.assert_close(solve_tau(z, math.log(8)), torch.full((6,), 0.01).double())


def test_loss_is_convex_in_tau():
    z = scores(1)
    grid = torch.linspace(0.05, 5, 200, dtype=torch.float64)
    losses = tau_cross_entropy(z.expand(200, -1), torch.zeros(200).long(), grid, 1.0)
    assert (losses.diff().diff() > -1e-12).all()


def test_training_finds_temperatures_better_than_any_constant_one():
    """Half of the rows name one class, half are spread over all of them."""
    torch.manual_seed(0)
    z = torch.cat([5 * torch.eye(8).repeat(8, 1) + torch.rand(64, 8), 2 * torch.randn(64, 8)])
    y = torch.zeros(128).long()
    part = TempNet(8, hidden=32, tau_max=5.0, rho_share=0.5, dropout=0.0)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        part.loss(z, y).backward()
        optimizer.step()

    def loss(tau):
        return tau_cross_entropy(z.double(), y, tau.expand(128), part.rho).mean().item()

    best = loss(solve_tau(z, part.rho, high=5.0))
    constant = min(loss(t) for t in torch.linspace(0.1, 5, 50).double())
    assert best <= part.loss(z, y).item() < constant


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_extreme_scores_are_finite(dtype, size):
    z = torch.tensor([[-1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]) * size
    z = z.to(dtype).requires_grad_()
    loss = TempNet(3)(z).float().sum() + TempNet(3).loss(z, torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_trains_through_the_engine():
    result = run(Recipe.of(softmax="tempnet(tau_max=2.0)", epochs=3))
    assert result.metrics["accuracy"] > 0.7


@pytest.mark.parametrize(
    "bad", [{"tau_min": 2.0}, {"rho_share": 1.5}, {"dropout": 1.0}, {"num_classes": 0}], ids=str
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TempNet(**{"num_classes": 4, **bad})


def test_scores_of_another_width():
    with pytest.raises(ValueError, match="4 columns"):
        TempNet(4)(torch.zeros(2, 5))
