"""Aggregate losses against loops over bags, and the closed form against gradient descent."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import AggregateLoss, AggregateRidge, bag_means, dp_bag_means, make_bags, select_rho

BAGS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 2])
"""Bags of 2, 2 and 4 examples."""


def sample(outputs=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(8, outputs, generator=generator, dtype=torch.float64)
    y = torch.rand(3, outputs, generator=generator, dtype=torch.float64)
    return f, y / y.sum(1, keepdim=True) if outputs > 1 else y


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_squared_error_is_bag_loss_plus_the_variance_within_bags(rho, outputs):
    f, y = sample(outputs)
    total = 0.0
    for bag in range(3):
        rows = f[bag == BAGS]
        spread = rows.var(dim=0, correction=0).mean()
        total += len(rows) * ((y[bag] - rows.mean(0)).square().mean() + rho * spread)
    torch.testing.assert_close(AggregateLoss(rho)(f, y, BAGS), total / 8, rtol=0, atol=1e-10)
    if rho == 1:
        instance = (y[BAGS] - f).square().mean()
        torch.testing.assert_close(total / 8, instance, rtol=0, atol=1e-10)


@pytest.mark.parametrize("base", ["bce", "ce"])
def test_cross_entropies_are_loops_over_bags(base):
    f, y = sample(1 if base == "bce" else 3)
    losses = []
    for bag in range(3):
        rows = f[bag == BAGS]
        p = rows.sigmoid() if base == "bce" else rows.softmax(1)
        if base == "bce":
            p, t = torch.cat([p, 1 - p], 1), torch.cat([y[bag], 1 - y[bag]])
        else:
            t = y[bag]
        losses.append(-0.7 * (t * p.mean(0).log()).sum() - 0.3 * (t * p.log()).sum(1).mean())
    part = AggregateLoss(0.3, base, reduction="none")
    torch.testing.assert_close(part(f, y, BAGS), torch.stack(losses))
    weighted = sum(n * loss for n, loss in zip((2, 2, 4), losses, strict=True))
    torch.testing.assert_close(AggregateLoss(0.3, base)(f, y, BAGS), weighted / 8)
    torch.testing.assert_close(AggregateLoss(0.3, base, reduction="sum")(f, y, BAGS), weighted)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_bags_of_one_are_ordinary_losses(rho):
    f, bags = torch.randn(6, 1), torch.randperm(6)
    y = torch.randn(6)
    torch.testing.assert_close(AggregateLoss(rho)(f, y, bags), F.mse_loss(f[:, 0], y[bags]))
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    found = AggregateLoss(rho, "ce")(logits, F.one_hot(labels, 4).float(), bags)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels[bags]))


@pytest.mark.parametrize("base", ["mse", "bce", "ce"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_large_scores_are_finite(base, dtype, size):
    f = (torch.tensor([[1.0, -1], [-1, 1], [1, 1]]) * size).to(dtype)[:, : 1 if base == "bce" else 2]
    f.requires_grad_()
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[:, : f.shape[1]]
    loss = AggregateLoss(0.5, base)(f, y, torch.tensor([0, 0, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(f.grad).all()


def regression(n=60, d=5, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    bags = make_bags(n, size, generator)
    y = x.sum(1) / d**0.5 + torch.randn(n, generator=generator, dtype=torch.float64)
    return x, bag_means(y, bags), bags


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_closed_form_is_where_gradient_descent_ends(rho):
    x, target, bags = regression(size=7)
    theta = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.3)
    for _ in range(5000 if rho == 0 else 500):
        optimizer.zero_grad()
        AggregateLoss(rho)(x @ theta, target, bags).backward()
        optimizer.step()
    model = AggregateRidge(rho).fit(x, target, bags)
    torch.testing.assert_close(model.theta, theta.detach()[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.predict(x), (x @ theta.detach())[:, 0], rtol=0, atol=1e-5)


def test_closed_form_is_the_papers_matrix_also_with_few_bags():
    x, target, bags = regression(d=20, size=6)
    m = (bags[:, None] == bags).double()
    m = m / m.sum(1)
    gram = x.T @ (m + 0.2 * (torch.eye(60) - m)) @ x
    expected = torch.linalg.solve(gram, x.T @ m @ target[bags])
    torch.testing.assert_close(AggregateRidge(0.2).fit(x, target, bags).theta, expected)


def test_bags_are_random_and_whole():
    bags = make_bags(23, 5, torch.Generator().manual_seed(0))
    assert bags.bincount().tolist() == [5, 5, 5, 5, 3]
    assert not torch.equal(bags, make_bags(23, 5, torch.Generator().manual_seed(1)))


def test_private_means_have_laplace_noise_of_the_right_scale():
    bags = torch.arange(40_000) // 2
    y = torch.full((40_000,), 5.0)
    noise = dp_bag_means(y, bags, epsilon=0.5, clip=3.0, generator=torch.Generator().manual_seed(0)) - 3.0
    scale = 2 * 3 / (2 * 0.5)
    assert noise.var().item() == pytest.approx(2 * scale**2, rel=0.05)
    assert noise.abs().mean().item() == pytest.approx(scale, rel=0.03)
    assert noise.median().item() == pytest.approx(0, abs=0.15)


def test_select_rho_avoids_what_generalises_badly():
    """75 features and 80 bags to fit on: the bag loss nearly interpolates."""
    x, target, bags = regression(n=500, d=75, size=5)
    assert select_rho(x, target, bags, [0.0, 0.3], generator=torch.Generator().manual_seed(0)) == 0.3
    assert select_rho(x, target, bags, [0.3], folds=2) == 0.3


def test_bad_input():
    f, y = sample()
    with pytest.raises(ValueError, match="rho"):
        AggregateLoss(1.5)
    with pytest.raises(ValueError, match="base"):
        AggregateLoss(base="mae")
    with pytest.raises(ValueError, match="only 3 of the target's 4"):
        AggregateLoss()(f, torch.cat([y, y[:1]]), BAGS)
    with pytest.raises(ValueError, match="bags name 2"):
        AggregateLoss()(f, y[:2], BAGS)
    with pytest.raises(ValueError, match=r"shape \(bags, 1\)"):
        AggregateLoss()(f, torch.randn(3, 2), BAGS)
    with pytest.raises(ValueError, match="size"):
        make_bags(4, 5)
    assert math.isfinite(AggregateLoss()(f, y[:, 0], BAGS).item())
