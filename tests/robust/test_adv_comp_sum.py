import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.robust import PGD, AdvCompSum

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1])


def generator():
    return torch.Generator().manual_seed(0)


def linear(classes=3):
    torch.manual_seed(0)
    return nn.Linear(6, classes, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_value_on_a_two_class_linear_model(tau):
    """The margin moves by (w_0 - w_1) . delta, at most eps ||w_0 - w_1||_1; D has one entry that is not 0."""
    model, y = linear(2), Y % 2
    logits = model(X)
    part = AdvCompSum(tau, rho=2.0, nu=0.7, eps=0.1, steps=40, reduction="none", generator=generator())
    loss = part(logits, y, model, X)
    m = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
    u = torch.exp(-m[:, 0] / 2)
    clean = torch.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
    shift = 0.1 * (model.weight[0] - model.weight[1]).abs().sum()
    torch.testing.assert_close(loss, clean + 0.7 * shift, atol=1e-6, rtol=0)


def test_penalty_is_the_norm_over_all_margins():
    model = nn.Sequential(linear(), nn.Tanh())
    part = AdvCompSum(eps=0.1, reduction="none", generator=generator())
    logits = model(X)
    loss = part(logits, Y, model, X)
    twin = AdvCompSum(eps=0.1, generator=generator())
    x_adv = twin._worst(model, X, Y)
    assert ((x_adv - X).abs() <= 0.1 + 1e-9).all()

    def margins(h):
        return torch.stack([h[i, y] - torch.cat([h[i, :y], h[i, y + 1 :]]) for i, y in enumerate(Y)])

    norm = (margins(model(x_adv)) - margins(logits)).norm(dim=1)
    torch.testing.assert_close(loss, F.cross_entropy(logits, Y, reduction="none") + norm)


def test_trains_the_model_and_leaves_it_as_it_was():
    model = nn.Sequential(linear(), nn.BatchNorm1d(3, dtype=torch.float64), nn.Dropout(0.2))
    loss = AdvCompSum(eps=0.1, generator=generator())(model(X), Y, model, X)
    assert all(p.grad is None for p in model.parameters())
    assert model[1].num_batches_tracked == 2  # the clean and the final batch; none of the attack's
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_gradient_reaches_the_weights_through_both_terms():
    model = linear()
    part = AdvCompSum(eps=0.1, reduction="sum", generator=generator())
    part(model(X).detach(), Y, model, X).backward()
    assert (model.weight.grad != 0).any()


def test_ignored_rows_and_another_attack():
    model, y = linear(), Y.clone()
    y[3] = -100
    part = AdvCompSum(eps=0.1)
    part.attack = PGD(0.1, norm="l2")
    logits = model(X).detach().requires_grad_()
    part(logits, y, model, X).backward()
    assert (logits.grad[3] == 0).all()


def test_refuses_bad_arguments():
    for name in ("rho", "nu", "eps"):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            AdvCompSum(**{name: 0})
    with pytest.raises(ValueError, match="tau must be at least 0"):
        AdvCompSum(tau=-1)
    model = linear()
    with pytest.raises(ValueError, match="inputs must have 5 rows"):
        AdvCompSum()(model(X), Y, model, X[:4])
