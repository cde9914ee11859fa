import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.robust import PGD


def linear(features=6, classes=3):
    torch.manual_seed(0)
    return nn.Linear(features, classes)


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_worst_point_of_a_linear_two_class_model(norm):
    """There the worst point is known: eps times the dual direction of w_wrong - w_right."""
    model, y = linear(classes=2), Y % 2
    w = (model.weight[1] - model.weight[0]) * (1 - 2 * y[:, None])
    direction = w.sign() if norm == "linf" else w / w.norm(dim=1, keepdim=True)
    x_adv = PGD(0.3, steps=40, norm=norm, generator=torch.Generator().manual_seed(0))(model, X, y)
    torch.testing.assert_close(x_adv, X + 0.3 * direction, atol=2e-3, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_the_ball_and_in_the_box_and_does_harm(norm):
    model = nn.Sequential(linear(), nn.Tanh(), nn.Linear(3, 3))
    x = X.sigmoid()
    x_adv = PGD(0.2, steps=5, step_size=0.1, norm=norm, clamp=(0, 1))(model, x, Y)
    size = (x_adv - x).abs().amax(1) if norm == "linf" else (x_adv - x).norm(dim=1)
    assert (size <= 0.2 + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert F.cross_entropy(model(x_adv), Y) > F.cross_entropy(model(x), Y)


def test_leaves_modes_gradients_statistics_and_the_global_generator():
    model = nn.Sequential(linear(), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.train()
    model[2].eval()
    model(X).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    statistics = model[1].running_mean.clone()
    rng = torch.get_rng_state()
    with torch.no_grad():
        x_adv = PGD(0.1, generator=torch.Generator())(model, X, Y)
    assert model.training
    assert model[1].training
    assert not model[2].training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not x_adv.requires_grad
    assert (x_adv != X).any()


def test_restores_the_mode_when_the_model_fails():
    model = nn.Sequential(linear(features=7))
    with pytest.raises(RuntimeError):
        PGD(0.1)(model, X, Y)
    assert model.training


def test_works_in_inference_mode():
    model = linear()
    with torch.inference_mode():
        x = X.clone()
        assert (PGD(0.1)(model, x, Y) != x).any()


def test_random_starts_fill_the_ball():
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, 2)
    for norm, inside in (("linf", 0.25), ("l2", 0.25)):
        start = PGD(1.0, norm=norm, generator=g)._start(x)
        radius = start.abs().amax(1) if norm == "linf" else start.norm(dim=1)
        assert radius.max() <= 1
        assert start.mean().abs() < 0.03
        assert (radius < 0.5).float().mean().item() == pytest.approx(inside, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0}, "eps must be positive"),
        ({"steps": 0}, "steps must be positive"),
        ({"step_size": -1}, "step_size must be positive, got -1"),
        ({"norm": "l1"}, "'l1'"),
        ({"clamp": (1, 0)}, r"\(1, 0\)"),
    ],
)
def test_refuses_bad_hyperparameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(**arguments)


def test_refuses_bad_input():
    for x in (X.long(), X[:0], X[:, 0]):
        with pytest.raises(ValueError, match="x must be floating point of shape"):
            PGD()(linear(), x, Y)
    with pytest.raises(ValueError, match="label 7"):
        PGD()(linear(), X, Y + 5)
