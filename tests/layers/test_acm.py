"""Adaptive computation: every choice against sums by hand, gradients of stages, losses, and counted work."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from logitkit.layers import (
    ACM,
    acmize,
    computed,
    distill,
    finetune,
    gate_diversity,
    gate_entropy,
    gate_labels,
    pretrain_gates,
    recorded_gates,
    set_mode,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module(**settings):
    torch.manual_seed(0)
    return ACM(6, 12, learners=3, **settings).double()


def by_hand(acm, x, k):
    """h_k of one token."""
    y = acm.b2[0].clone()
    for i in range(k):
        y = y + F.gelu(x @ acm.w1[i] + acm.b1[i]) @ acm.w2[i] + acm.b2[i + 1]
    return y


def test_every_choice_in_every_mode():
    acm, x = module(), draw(2, 4, 6)
    expected = torch.stack(
        [torch.stack([by_hand(acm, x[b, t], k) for b in (0, 1) for t in range(4)]) for k in range(4)]
    )
    sums = acm.partial_sums(x)
    for k in range(4):
        acm.mode = k
        torch.testing.assert_close(acm(x).flatten(0, 1), expected[k])
        torch.testing.assert_close(sums[..., k, :].flatten(0, 1), expected[k])
        torch.testing.assert_close(acm.chosen(x, torch.full((2, 4), k)).flatten(0, 1), expected[k])
    acm.mode = "all"
    torch.testing.assert_close(acm(x).flatten(0, 1), expected[3])
    mixed = torch.tensor([[0, 1, 2, 3], [3, 0, 3, 1]])
    found = acm.chosen(x, mixed).flatten(0, 1)
    torch.testing.assert_close(found, expected[mixed.flatten(), torch.arange(8)])


def test_gates_in_training_and_after():
    acm, x = module(), draw(2, 4, 6)
    acm.mode = "gated"
    torch.manual_seed(1)
    with recorded_gates(acm) as gates:
        y = acm(x)
    k = gates[0].argmax(-1)
    assert (gates[0].sum(-1) == 1).all()
    torch.testing.assert_close(y, acm.chosen(x, k))
    y.sum().backward()
    assert acm.gate.weight.grad.abs().sum() > 0
    acm.eval()
    torch.testing.assert_close(acm(x), acm.chosen(x, acm.gate(x).argmax(-1)))
    assert acm._record is None


def test_detached_sums_train_one_learner_each():
    acm, x = module(), draw(5, 6)
    sums = acm.partial_sums(x, detach=True)
    torch.testing.assert_close(sums, acm.partial_sums(x))
    for k in range(4):
        (grad,) = torch.autograd.grad(sums[:, k].sum(), acm.w2, retain_graph=True, allow_unused=True)
        assert [bool(g.any()) for g in grad] == [i == k - 1 for i in range(3)]


def test_labels_of_gates():
    target = torch.zeros(4, 1)
    errors = torch.tensor([[8.0, 4, 2, 1], [8, 4, 4.5, 1], [8, 9, 2, 1], [8, 4, 2, 2.5]])
    assert gate_labels(errors[..., None], target).tolist() == [3, 2, 3, 3]


def test_losses_of_gates():
    uniform = torch.eye(4).repeat(2, 1, 1)  # two examples whose four tokens choose 0, 1, 2, 3
    assert gate_entropy([uniform, uniform]).item() == pytest.approx(1)
    assert computed([uniform]).item() == pytest.approx(0.5)
    few = F.one_hot(torch.tensor([[0, 0, 0, 1], [3, 3, 3, 3]]), 4).float()
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(4)
    assert gate_entropy([few]).item() == pytest.approx(entropy / 2)
    assert computed([few, uniform], [3.0, 1.0]).item() == pytest.approx((3 * 13 / 8 + 1.5) / (3 * 3 + 3))
    assert gate_diversity([few]).item() == pytest.approx(2 * (3 / 4 - 1 / 16) / 2)


def test_counted_work_is_what_the_gates_say():
    acm, x = module().eval(), draw(3, 5, 6)
    acm.mode = "gated"
    with recorded_gates(acm) as gates, FlopCounterMode(display=False) as counter, torch.no_grad():
        acm(x)
    learners = gates[0].argmax(-1).sum().item()
    assert 0 < learners < 3 * 15
    gating = 15 * 6 * 4
    assert counter.get_total_flops() == 2 * (learners * acm.cost + gating)
    torch.testing.assert_close(computed(gates).item() * 45, float(learners))


class Net(nn.Module):
    """Residual feed-forward layers on tokens, and their mean."""

    def __init__(self):
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)) for _ in range(2)
        )

    def forward(self, x):
        for mlp in self.mlps:
            x = x + mlp(x)
        return x.mean(1)


def test_three_stages():
    torch.manual_seed(0)
    teacher, x = Net(), draw(64, 5, 6).float()
    student = acmize(teacher, learners=4)
    assert student.mlps[0].w1.shape == (4, 6, 4)
    assert isinstance(teacher.mlps[0], nn.Sequential)

    def error():
        with torch.no_grad():
            return (student(x) - teacher(x)).square().mean().item()

    before = error()
    distill(student, teacher, [x] * 150, lr=1e-2)
    assert error() < 0.1 * before
    pretrain_gates(student, teacher, [x] * 30, lr=1e-2)
    labels = gate_labels(student.mlps[0].partial_sums(x), teacher.mlps[0](x))
    with torch.no_grad():
        hits = (student.mlps[0].gate(x).argmax(-1) == labels).float().mean()
    assert hits > 0.5
    finetune(student, [(x, x[:, 0])] * 60, target=0.4, lr=1e-2, task=F.mse_loss)
    with recorded_gates(student.train()) as gates, torch.no_grad():
        student(x)
    assert computed(gates).item() == pytest.approx(0.4, abs=0.1)
    set_mode(student, 2)
    assert student.mlps[1].mode == 2


def test_bad_settings():
    with pytest.raises(ValueError, match="learners must divide hidden, got 3 learners and 10 units"):
        ACM(4, 10, learners=3)
    acm = module()
    acm.mode = 4
    with pytest.raises(ValueError, match=r"one of 0 .. 3, got 4"):
        acm(draw(2, 6))
    with pytest.raises(ValueError, match="found 0 feed-forward layers"):
        acmize(nn.Linear(2, 2))
