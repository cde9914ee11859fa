"""Counter-current learning: who learns from what, and what the losses are."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.errors import InputError
from logitkit.train import (
    CounterCurrent,
    CounterCurrentConv2d,
    CounterCurrentLinear,
    CounterCurrentNet,
    counter_current_loss,
)

WIDTHS = (6, 5, 4, 3)


def net(seed=0):
    torch.manual_seed(seed)
    layers = [CounterCurrentLinear(a, b, "tanh") for a, b in itertools.pairwise(WIDTHS)]
    return CounterCurrentNet(layers).double()


def sample():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(8, 6, generator=g, dtype=torch.float64)
    return x, torch.randint(3, (8,), generator=g), torch.eye(3, dtype=torch.float64)


def terms(model):
    x, y, eye = sample()
    acts, signals = model(x), model.reverse(eye)
    each = [counter_current_loss(a, c, y) for a, c in zip(acts[:-1], signals[:-1], strict=True)]
    return [*each, F.cross_entropy(acts[-1], y)]


def test_the_loss_is_the_mean_over_pairs():
    g = torch.Generator().manual_seed(0)
    a, c = torch.randn(4, 2, 3, generator=g), torch.randn(5, 2, 3, generator=g)
    y = torch.tensor([1, 0, 4, 4])
    total = 0.0
    for i in range(4):
        for k in range(5):
            total += (float((a[i] * c[k]).sum()) - (int(y[i]) == k)) ** 2
    assert counter_current_loss(a, c, y, 0.25).item() == pytest.approx(0.25 * 256 / 6 * total / 20)


def test_the_loss_is_0_where_activations_meet_their_own_signal_only():
    signal = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q[:3]
    y = torch.tensor([2, 0, 1, 1])
    assert counter_current_loss(signal[y], signal, y).item() < 1e-28
    assert counter_current_loss(1.01 * signal[y], signal, y).item() > 0


def test_each_layer_learns_from_its_own_loss():
    """W_l from the l-th loss alone, the last W from the scores' loss, B_l from the loss below it."""
    together = net()
    torch.stack(terms(together)).sum().backward()
    for at in range(4):
        alone = net()
        terms(alone)[at].backward()
        for level, (layer, whole) in enumerate(zip(alone.layers, together.layers, strict=True), start=1):
            for w, own in ((layer.up, level == at), (layer.down, level - 1 == at)):
                expected = getattr(whole, "up" if w is layer.up else "down").weight.grad
                if own:
                    torch.testing.assert_close(w.weight.grad, expected)
                else:
                    assert w.weight.grad is None


def test_one_layer_by_hand():
    model = net()
    x, y, eye = sample()
    first, second, last = model.layers
    signal = torch.tanh(torch.tanh(eye @ last.down.weight.T) @ second.down.weight.T)
    a = torch.tanh(x @ first.up.weight.T)
    expected = 128 / 5 * ((a @ signal.T - F.one_hot(y, 3)) ** 2).mean()
    torch.testing.assert_close(terms(model)[1], expected)


def test_convolutions_carry_signals_as_maps():
    torch.manual_seed(0)
    model = CounterCurrentNet([CounterCurrentConv2d(1, 4), CounterCurrentLinear(4 * 16, 10)])
    acts = model(torch.randn(2, 1, 8, 8))
    signals = model.reverse(torch.eye(10), like=acts)
    assert [tuple(a.shape[1:]) for a in acts] == [(1, 8, 8), (4, 4, 4), (10,)]
    assert [tuple(c.shape) for c in signals] == [(10, 1, 8, 8), (10, 4, 4, 4), (10, 10)]
    up = F.interpolate(signals[1], scale_factor=2, mode="nearest")
    torch.testing.assert_close(
        signals[0], F.conv2d(up, model.layers[0].down.weight, model.layers[0].down.bias, padding=1)
    )


def test_the_engine_trains_the_same_way():
    """A step of plain gradient descent by the algorithm, and by hand."""
    recipe = Recipe.of(
        data="moons:n=60", model="mlp(hidden=(5, 4))", optimizer="sgd(momentum=0.0)", lr=0.1,
        schedule="constant", batch_size=8, steps=1, algorithm="counter_current(act=tanh)",
    )  # fmt: skip
    trainer = Trainer(recipe, Prepared.of(data.split(data.load("moons:n=60"), 0)))
    x, y = (t[:8] for t in trainer.data.train)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    algorithm = trainer.algorithm
    algorithm.step(trainer, Batch(x, y, torch.arange(8)))
    first, second, head = (m for m in trainer.network.modules() if isinstance(m, nn.Linear))
    after = [p.detach() for p in trainer.network.parameters()]
    probe = CounterCurrent("tanh")
    probe._begin(trainer, [first, second, head])
    signals = [s.detach() for s in probe.signals()]
    w = [p.clone().requires_grad_() for p in before]
    a1 = (x @ w[0].T + w[1]).relu()
    a2 = (a1.detach() @ w[2].T + w[3]).relu()
    scores = a2.detach() @ w[4].T + w[5]
    loss = F.cross_entropy(scores, y)
    loss = loss + counter_current_loss(a1, signals[1], y) + counter_current_loss(a2, signals[2], y)
    for new, old, grad in zip(after, w, torch.autograd.grad(loss, w), strict=True):
        torch.testing.assert_close(new, old.detach() - 0.1 * grad)
    moved = [f.detach() - b.detach() for f, b in zip(algorithm.feedback, probe.feedback, strict=True)]
    assert all((m != 0).any() for m in moved)


def test_gradients_are_clipped_and_centred_each_by_itself():
    settings = {
        "data": "moons:n=60", "model": "mlp(hidden=(5,))", "optimizer": "sgd(momentum=0.0)", "lr": 1.0,
        "schedule": "constant", "batch_size": 36, "steps": 1,
    }  # fmt: skip
    prepared = Prepared.of(data.split(data.load("moons:n=60"), 0))
    trainer = Trainer(
        Recipe.of(**settings, clip=0.01, algorithm="counter_current(centralize=True)"), prepared
    )
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.run()
    moved = [p.detach() - b for p, b in zip(trainer.network.parameters(), before, strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-4)
    assert all(m.mean(1).abs().max() < 1e-6 for m in moved if m.ndim == 2)


@pytest.mark.parametrize("settings", [{"model": "cnn(width=8)"}, {"head": "cosine"}])
def test_networks_with_other_parameters_are_refused(settings, tmp_path):
    with pytest.raises(InputError, match="takes networks of linear layers"):
        logitkit.compare(algorithm="counter_current", loss=["ce", "focal"], folder=tmp_path, **settings)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="act must be one of"):
        CounterCurrent("gelu")
    with pytest.raises(ValueError, match="scale must be positive"):
        CounterCurrent(scale=0.0)
