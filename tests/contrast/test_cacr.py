"""CACR against loops over plain floats, its limits, and numbers of the published code."""

import math

import pytest
import torch

from logitkit.contrast import CACRLoss


def waves():
    """Three views of six examples, without a random number."""
    v = torch.arange(3, dtype=torch.float64)[:, None, None]
    i = torch.arange(6, dtype=torch.float64)[None, :, None]
    j = torch.arange(4, dtype=torch.float64)
    return torch.sin(1.7 * (i + 1) * (j + 1) + 0.4 * v * (j + 1) + 0.3 * v * i)


def unit(z):
    return (z / z.norm(dim=-1, keepdim=True)).tolist()


def cost(a, b):
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))


def soft_mean(costs, sharpness):
    weights = [math.exp(sharpness * c) for c in costs]
    return sum(w * c for w, c in zip(weights, costs, strict=True)) / sum(weights)


def loop(z, t_pos, t_neg):
    z = unit(z)
    views, batch = range(len(z)), range(len(z[0]))
    pull = [soft_mean([cost(z[u][i], z[v][i]) for v in views if v != u], t_pos) for u in views for i in batch]
    push = [
        soft_mean([cost(z[u][i], z[v][j]) for j in batch if j != i], -t_neg)
        for u in views
        for v in views
        if u != v
        for i in batch
    ]
    return sum(pull) / len(pull), sum(push) / len(push)


@pytest.mark.parametrize(("t_pos", "t_neg"), [(1, 1), (2, 0.5), (0, 1), (1, 0), (0, 0)])
def test_loop_over_plain_floats(t_pos, t_neg):
    pull, push = loop(waves(), t_pos, t_neg)
    assert CACRLoss(t_pos, t_neg)(waves()).item() == pytest.approx(pull - push, abs=1e-9)
    assert CACRLoss(t_pos, t_neg, 0.3, 2.0)(waves()).item() == pytest.approx(0.3 * pull - 2 * push, abs=1e-9)


@pytest.mark.parametrize(
    ("t_pos", "t_neg", "attraction", "repulsion"),
    [(1, 1, 2.622904873525665, -1.197049771840962), (2, 2, 2.7329005697048636, -0.8662758153953614),
     (0, 0, 2.3831297663106317, -1.9835590140533668)],
)  # fmt: skip
def test_the_published_code_finds_the_same(t_pos, t_neg, attraction, repulsion):
    """It takes each pair of views in one direction; the numbers are its means over both."""
    assert CACRLoss(t_pos, t_neg, beta=0)(waves()).item() == pytest.approx(attraction, abs=1e-9)
    assert CACRLoss(t_pos, t_neg, alpha=0)(waves()).item() == pytest.approx(repulsion, abs=1e-9)


def test_without_sharpness_it_is_the_mean_distance():
    z = torch.nn.functional.normalize(waves(), dim=-1)
    between = [(z[u] - z[v]).square().sum(-1).mean() for u in range(3) for v in range(3) if u != v]
    assert CACRLoss(0, 0, beta=0)(waves()).item() == pytest.approx(float(sum(between)) / 6)


def test_weights_are_those_of_the_loss():
    loss = CACRLoss(1.5, 2.5)
    attraction, repulsion = loss.weights(waves())
    z = torch.nn.functional.normalize(waves(), dim=-1)
    torch.testing.assert_close(attraction.sum(-1), torch.ones(3, 6).double())
    rows = repulsion.sum(-1)
    torch.testing.assert_close(rows, (1 - torch.eye(3)).double()[:, :, None].expand(3, 3, 6))
    assert (repulsion.diagonal(dim1=2, dim2=3) == 0).all()
    other = torch.tensor([[1, 2], [0, 2], [0, 1]])
    near = (z[:, None] - z[other]).square().sum(-1).transpose(1, 2)
    far = (z[:, None, :, None] - z[None, :, None, :]).square().sum(-1)
    value = (attraction * near).sum(-1).mean() - (repulsion * far).sum(-1)[rows > 0].mean()
    assert loss(waves()).item() == pytest.approx(value.item(), abs=1e-9)


def test_views_may_be_several_tensors():
    assert CACRLoss()(list(waves())) == CACRLoss()(waves())
    with pytest.raises(ValueError, match="one shape, got 2"):
        CACRLoss()([torch.randn(3, 4), torch.randn(2, 4)])


def test_two_views_weigh_their_only_positive_fully():
    assert (CACRLoss().weights(waves()[:2]).attraction == 1).all()


def test_a_rotation_changes_nothing():
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    assert CACRLoss()(waves() @ turn).item() == pytest.approx(CACRLoss()(waves()).item(), abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"t_pos": -1}, "t_pos must be at least 0, got -1"), ({"views": 1}, "at least 2, got 1")],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        CACRLoss(**settings)
