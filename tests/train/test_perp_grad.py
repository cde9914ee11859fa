"""PerpGrad: the projection, the authors' numbers, and an ordinary optimiser around it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from logitkit.train import PerpGrad, nlm_cosine, perpendicular


def test_gradient_is_orthogonal_to_the_weights_and_keeps_its_length():
    w, g = torch.randn(30, 20), torch.randn(30, 20)
    turned = perpendicular(g, w)
    assert abs((w * turned).sum()) < 1e-6 * w.norm() * g.norm()
    torch.testing.assert_close(turned.norm(), g.norm())
    shorter = perpendicular(g, w, rescale=False)
    torch.testing.assert_close(shorter, g - (w * g).sum() / (w * w).sum() * w)
    torch.testing.assert_close(turned / turned.norm(), shorter / shorter.norm())


def test_nearly_parallel_gradients_stay_orthogonal():
    w, noise = torch.randn(1000), torch.randn(1000)
    turned = perpendicular(-w + 1e-4 * noise, w)
    assert abs((w * turned).sum()) < 1e-6 * w.norm() * turned.norm()


def test_zero_weights_keep_their_gradient_and_parallel_gradients_vanish():
    g = torch.randn(5)
    assert torch.equal(perpendicular(g, torch.zeros(5)), g)
    assert perpendicular(0.3 * g, g).abs().max() == 0
    assert perpendicular(torch.tensor([0.7]), torch.tensor([0.1])).item() == 0
    assert perpendicular(torch.zeros(5), g).abs().max() == 0


# OrthoGrad of LucasPrietoAl/grokking-at-the-edge-of-numerical-stability, orthograd.py at 0cc9e8d: weight and
# bias after three steps with lr 0.1 on the problem below, in float64.
SGD = [3.043367151790, -2.149854894300, -0.840444069673, -2.087310534627, 3.178613973411, 0.985848993568]
ADAM = [1.298207388794, -2.271662903297, 0.200814043090, -0.049115737786, 3.244462594931, -0.700488172790]


@pytest.mark.parametrize(
    ("base", "arguments", "weight", "bias"),
    [
        ("sgd", {"momentum": 0.8}, SGD, [0.460174534660, -2.274469499195]),
        (torch.optim.Adam, {}, ADAM, [0.122315331854, -0.251429175850]),
    ],
)
def test_values_of_the_authors_code(base, arguments, weight, bias):
    w = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], dtype=torch.float64))
    b = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    x, y = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)
    optimizer = PerpGrad([w, b], base, lr=0.1, **arguments)

    def closure():
        optimizer.zero_grad()
        loss = (w @ x + b - y).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert w.flatten().tolist() == pytest.approx(weight, abs=1e-11)
    assert b.tolist() == pytest.approx(bias, abs=1e-11)


def test_a_small_step_keeps_the_weights_length_to_second_order():
    changes = []
    for lr in (1e-3, 1e-4):
        torch.manual_seed(0)
        w, x = nn.Parameter(torch.randn(4, 6, dtype=torch.float64)), torch.randn(8, 6, dtype=torch.float64)
        before = w.norm().item()
        nn.functional.cross_entropy(x @ w.T, torch.arange(8) % 4).backward()
        PerpGrad([w], "sgd", lr=lr).step()
        changes.append(abs(w.norm().item() - before))
    assert changes[0] / changes[1] == pytest.approx(100, rel=1e-2)


def setup():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = PerpGrad(model.parameters(), lr=0.1)
    return model, optimizer


def advance(model, optimizer, steps=3):
    x = torch.linspace(-1, 1, 40).reshape(8, 5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(8) % 3).backward()
        optimizer.step()


def test_schedulers_and_new_groups_reach_the_base():
    model, optimizer = setup()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    advance(model, optimizer, 1)
    schedule.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.01)
    extra = nn.Parameter(torch.randn(3))
    optimizer.add_param_group({"params": [extra]})
    extra.grad = torch.randn(3)
    before = extra.detach().clone()
    optimizer.step()
    assert not torch.equal(extra, before)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_of_model_and_optimizer_goes_on_alike(copier):
    model, optimizer = setup()
    advance(model, optimizer)
    twin, resumed = copier((model, optimizer))
    advance(model, optimizer)
    advance(twin, resumed)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_nlm_cosine_is_one_for_scaling_and_zero_after_the_projection():
    model = nn.Linear(4, 3)
    for p in model.parameters():
        p.grad = -0.3 * p.detach()
    assert nlm_cosine(model).item() == pytest.approx(1)
    for p in model.parameters():
        p.grad = perpendicular(torch.randn_like(p), p.detach())
    assert abs(nlm_cosine(model).item()) < 1e-6
    with pytest.raises(ValueError, match="backward"):
        nlm_cosine(nn.Linear(2, 2))


def test_unknown_base_and_sparse_gradients():
    with pytest.raises(ValueError, match=r"'adamm'.* Did you mean 'adam"):
        PerpGrad([nn.Parameter(torch.zeros(1))], "adamm")
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="dense gradients"):
        PerpGrad(table.parameters(), "sgd").step()
