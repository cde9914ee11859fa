"""The signal task: its likelihood, its models' symmetries, and one step by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.theory import DSDNet, bayes_score, dsd, sample_complexity, soft_threshold


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(n, seed):
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64)).Q


def test_the_task_is_as_described():
    x, y, w = dsd(4000, 3, 5, 0.2, generator())
    patches = x.view(4000, 3, 5)
    assert w.norm().item() == pytest.approx(1)
    strongest = (patches @ w * y[:, None]).argmax(1)
    assert strongest.bincount().min() > 1100
    rest = patches.clone()
    rest[torch.arange(4000), strongest] -= y[:, None] * w
    assert rest.std().item() == pytest.approx(0.2, rel=0.02)
    static = dsd(300, 3, 5, 0.01, generator(), static=True)
    assert ((static.x.view(300, 3, 5)[:, 0] @ static.signal) * static.y).min() > 0.9


def test_the_score_is_the_log_odds_of_the_mixture():
    x, _, w = dsd(6, 3, 4, 0.5, generator(1))
    x, w = x.double(), w.double()
    found = bayes_score(x, w, 0.5)
    for row, score in zip(x.view(6, 3, 4), found, strict=True):
        odds = []
        for y in (1, -1):
            total = 0.0
            for t in range(3):
                mean = torch.zeros(3, 4, dtype=torch.float64)
                mean[t] = y * w
                total += math.exp(-float((row - mean).square().sum()) / (2 * 0.25))
            odds.append(math.log(total))
        assert score.item() == pytest.approx(odds[0] - odds[1], rel=1e-9)


@pytest.mark.parametrize("kind", ["cnn", "lcn", "fcn"])
def test_no_network_errs_less_than_the_bayes_rule(kind):
    train, test = dsd(2000, 4, 6, 0.4, generator(2)), None
    test = dsd(20_000, 4, 6, 0.4, generator(3), signal=train.signal)
    net = DSDNet(kind, 4).fit(train.x, train.y)
    error = (net.predict(test.x) * test.y <= 0).double().mean()
    bayes = (bayes_score(test.x, test.signal, 0.4) * test.y <= 0).double().mean()
    assert error >= bayes - 3 * (bayes * (1 - bayes) / 20_000).sqrt()


def test_the_right_convolution_errs_as_its_scalar_score():
    """With w = w*, <w, x_i> is y + sigma e in one patch and sigma e in the others."""
    k, sigma, b = 16, 0.2, 0.3
    x, y, w = dsd(40_000, k, 16, sigma, generator(4))
    net = DSDNet("cnn", k, b, steps=1, lr=1e-30).fit(x[:2], y[:2], start=w)
    error = (net.predict(x) * y <= 0).double().mean().item()
    z = sigma * torch.randn(40_000, k, generator=generator(5))
    z[:, 0] += 1
    expected = (soft_threshold(z, b).sum(1) <= 0).double().mean().item()
    assert abs(error - expected) < 4 * math.sqrt(2 * max(expected, 1e-4) / 40_000)


def rotated(x, kind, seed=7):
    """x in the network's own group, and the same change of its weights."""
    patches = x.view(len(x), 4, 3)
    if kind == "cnn":
        r = rotation(3, seed)
        return (patches @ r.T).flatten(1), lambda w: w @ r.T
    if kind == "lcn":
        rs = torch.stack([rotation(3, seed + i) for i in range(4)])
        return torch.einsum("nki,kji->nkj", patches, rs).flatten(1), lambda w: torch.einsum(
            "ki,kji->kj", w, rs
        )
    r = rotation(12, seed)
    return x @ r.T, lambda w: w @ r.T


@pytest.mark.parametrize("kind", ["cnn", "lcn", "fcn"])
def test_descent_cannot_tell_a_rotation_from_that_of_its_start(kind):
    x, y, _ = dsd(40, 4, 3, 0.3, generator(6))
    x, y = x.double(), y.double()
    net = DSDNet(kind, 4, steps=50)
    start = net.start(12)
    plain = net.fit(x, y, start).predict(x)
    turned, turn = rotated(x, kind)
    torch.testing.assert_close(net.fit(turned, y, turn(start)).predict(turned), plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("kind", "larger"), [("cnn", "lcn"), ("lcn", "fcn")])
def test_but_that_of_a_larger_group_it_can(kind, larger):
    """Rotated data leave the model: no start gives the same predictions, as it would if it only turned."""
    x, y, _ = dsd(40, 4, 3, 0.3, generator(6))
    x, y = x.double(), y.double()
    net = DSDNet(kind, 4, steps=50)
    turned, _ = rotated(x, larger)
    plain = net.fit(x, y).predict(x)
    assert (net.fit(turned, y).predict(turned) - plain).abs().max() > 1e-2


def test_a_locally_connected_network_with_one_weight_is_a_convolution():
    x, y, w = dsd(30, 4, 3, 0.3, generator(8))
    tied = DSDNet("lcn", 4, lr=1e-30, steps=1).fit(x, y, start=w.expand(4, 3))
    shared = DSDNet("cnn", 4, lr=1e-30, steps=1).fit(x, y, start=w)
    torch.testing.assert_close(tied.predict(x), shared.predict(x))


@pytest.mark.parametrize("kind", ["cnn", "lcn", "fcn"])
def test_a_step_goes_down_the_gradient_of_autograd(kind):
    x, y, _ = dsd(20, 4, 3, 0.5, generator(9))
    x, y = x.double(), y.double()
    net = DSDNet(kind, 4, b=0.2, lr=0.7, steps=1)
    w = net.start(12).requires_grad_()
    z = x @ w.T if kind == "fcn" else (x.view(20, 4, 3) * w).sum(-1)
    f = ((z - 0.2).relu() - (-z - 0.2).relu()).sum(1)
    loss = F.softplus(-y * f).mean()
    expected = w.detach() - 0.7 * torch.autograd.grad(loss, w)[0]
    torch.testing.assert_close(net.fit(x, y, w.detach()).weight, expected)


def test_more_sharing_needs_fewer_examples():
    signal = dsd(1, 4, 4, 0.2, generator(10)).signal

    def draw(n, part):
        return dsd(n, 4, 4, 0.2, generator(100 + part), signal=signal)

    found = [
        sample_complexity(draw, kind, 4, (4, 16, 64, 256), steps=100, test=1000) for kind in ("cnn", "fcn")
    ]
    assert found[0] is not None
    assert found[1] is None or found[1] > found[0]


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="kind must be one of"):
        DSDNet("mlp")
    with pytest.raises(ValueError, match="of 4 patches"):
        DSDNet().fit(torch.zeros(3, 10), torch.ones(3))
    with pytest.raises(ValueError, match="-1 and 1"):
        DSDNet().fit(torch.zeros(3, 8), torch.zeros(3))
