"""The contrastive TempNet loss against the direct robust loss, and numbers of the authors' code."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.contrast import TempNetContrastive


def views(k):
    i = torch.arange(12).float()
    a = F.normalize(1 + 0.3 * torch.cos(i * k).view(4, 3), dim=1)
    return a, F.normalize(a + 0.2 * torch.sin(i * k * 2 + 1).view(4, 3), dim=1)


def test_values_of_the_official_code():
    """iSogCLR_TempNet_Loss of github.com/zhqiu/TempNet on two batches: 6 pairs, 3 features, 5 prototypes,
    sines as weights, rho 1. Its loss comes in two parts, of features and of temperatures."""
    part = TempNetContrastive(3, 6, rho=1.0, prototypes=5, dropout=0.0)
    with torch.no_grad():
        for generator in (part.generator_a, part.generator_b):
            weights = (
                generator.prototypes,
                generator.project.weight,
                generator.project.bias,
                generator.last.weight,
            )
            for i, p in enumerate(weights, start=2):
                p.copy_(torch.sin(torch.arange(p.numel()).float() * i).view_as(p))
            generator.last.bias.fill_(0.5)
            generator.sharpness.fill_(-1.0)
        part.generator_b.project.bias += 1
    expected = [
        (-0.02961692400276661 + 0.04387350380420685,
         [-1.354303002357483, -0.35786736011505127, -1.0746530294418335, 0.2706108093261719]),
        (6.893445242894813e-05 + 0.059879302978515625,
         [-0.1543940305709839, -0.04732322692871094, -0.1455209106206894, 0.04788541793823242]),
    ]  # fmt: skip
    batches = ((1.3, [0, 1, 2, 3]), (2.1, [3, 2, 0, 1]))
    for (k, ids), (value, log_s) in zip(batches, expected, strict=True):
        assert part(*views(k), torch.tensor(ids)).item() == pytest.approx(value, abs=1e-6)
        assert part.log_s_a[:4].tolist() == pytest.approx(log_s, abs=1e-5)
        assert part.log_s_a[4:].isnan().all()
    tau = [0.03338616341352463, 0.0334026999771595, 0.03327275067567825, 0.033425334841012955]
    assert part.temperatures(*views(1.3))[0].tolist() == pytest.approx(tau, abs=1e-7)


def direct(a, b, t_a, t_b, rho):
    """t log mean_j exp(d_ij / t) + t rho over both directions."""
    s = F.normalize(a) @ F.normalize(b).T
    total = 0.0
    for sim, t in ((s, t_a), (s.T, t_b)):
        for i in range(len(sim)):
            d = torch.cat([sim[i, :i], sim[i, i + 1 :]]) - sim[i, i]
            total = total + (t[i] * (torch.logsumexp(d / t[i], 0) - math.log(len(d))) + t[i] * rho) / len(sim)
    return total


def test_without_memory_the_gradient_is_that_of_the_robust_loss():
    torch.manual_seed(0)
    part = TempNetContrastive(
        5, 10, gamma=1.0, rho=0.7, prototypes=6, tau_min=0.1, tau_max=1.0, dropout=0.0
    ).double()
    a = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    wanted = [a, b, *part.parameters()]
    found = torch.autograd.grad(part(a, b, torch.arange(7)), wanted)
    expected = torch.autograd.grad(direct(a, b, *part.temperatures(a, b), 0.7), wanted)
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right)


def test_moving_average_by_hand():
    torch.manual_seed(0)
    part = TempNetContrastive(3, 4, gamma=0.25, rho=1.0, tau_min=0.2, tau_max=0.9).eval().double()
    a, b = (x.double() for x in views(1.3))
    ids = torch.tensor([1, 3, 0, 2])
    s = a @ b.T
    t = part.temperatures(a, b)[0]
    g = [
        sum(math.exp((s[i, j] - s[i, i]).item() / t[i].item()) for j in range(4) if j != i) / 3
        for i in range(4)
    ]
    part(a, b, ids)
    assert part.log_s_a.isnan().all()  # evaluation leaves no trace
    part.train()
    part.generator_a.dropout = part.generator_b.dropout = 0.0
    part(a, b, ids)
    assert part.log_s_a[ids].exp().tolist() == pytest.approx(g)
    part.log_s_a += math.log(2.0)
    part(a, b, ids)
    assert part.log_s_a[ids].exp().tolist() == pytest.approx([0.75 * 2 * x + 0.25 * x for x in g])


def test_one_pair_has_no_negatives():
    part = TempNetContrastive(3, 4)
    a = torch.randn(1, 3, requires_grad=True)
    loss = part(a, torch.randn(1, 3), torch.tensor([2]))
    loss.backward()
    assert loss.item() == 0
    assert part.log_s_a.isnan().all()


def test_bad_input():
    part, x = TempNetContrastive(3, 4), torch.randn(2, 3)
    with pytest.raises(ValueError, match="ids name 4"):
        part(x, x, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"ids must be integers of shape \(2,\)"):
        part(x, x, torch.tensor([0]))
    with pytest.raises(ValueError, match="gamma"):
        TempNetContrastive(3, 4, gamma=0.0)
    with pytest.raises(ValueError, match="tau_min"):
        TempNetContrastive(3, 4, tau_min=0.1)
