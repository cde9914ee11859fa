"""Edge-MoE: the order of work changes nothing, and reads what it says."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.models import EdgeMoEViT, TaskMoE, attention_schedule, online_softmax, table_gelu


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_the_online_softmax_is_the_softmax(order):
    g = torch.Generator().manual_seed(0)
    scores = 100 * torch.randn(9, 3, generator=g, dtype=torch.float64) - 50
    if order != "random":
        scores = scores.sort(0, descending=order == "falling").values
    torch.testing.assert_close(torch.stack(online_softmax(scores)), scores.softmax(0), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="at least one score"):
        online_softmax([])


def test_the_table_is_gelu_to_a_ten_thousandth():
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    assert (table_gelu(x) - F.gelu(x)).abs().max() <= 1.0e-4
    torch.testing.assert_close(table_gelu(-x), table_gelu(x) - x)
    at = torch.arange(177) / 32  # exact at its own entries
    torch.testing.assert_close(table_gelu(at.double()), F.gelu(at.double()), rtol=0, atol=2e-7)
    x = torch.tensor([-1.01, 0.33, 2.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table_gelu, x)


@pytest.mark.parametrize(("n", "p"), [(7, 1), (7, 3), (7, 6), (12, 4)])
def test_every_pair_meets_once_and_a_step_reads_one_key_and_one_query(n, p):
    steps = attention_schedule(n, p)
    pairs = [pair for step in steps for pair in step.pairs]
    assert sorted(pairs) == [(q, k) for q in range(n) for k in range(n)]
    assert sorted(s.query for s in steps if s.query is not None) == list(range(n))
    assert all(len(s.pairs) <= p and all(key == s.key for _, key in s.pairs) for s in steps)
    held = set()
    for step in steps:  # nobody meets a key before it was read
        held |= {step.query}
        assert {q for q, _ in step.pairs} <= held
    with pytest.raises(ValueError, match="below n"):
        attention_schedule(4, 4)


def test_expert_by_expert_is_token_by_token():
    torch.manual_seed(0)
    moe = TaskMoE(6, 5, experts=7, k=3, tasks=2).double().requires_grad_(False)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    for task in (0, 1):
        moe.task = task
        for token, found in zip(x.flatten(0, 1), moe(x).flatten(0, 1), strict=True):
            scores = moe.gates[task] @ token
            best = sorted(range(7), key=lambda e: -float(scores[e]))[:3]
            share = torch.softmax(scores[best], 0)
            total = torch.zeros(6, dtype=torch.float64)
            for s, e in zip(share, best, strict=True):
                total += s * (moe.down[e] @ F.gelu(moe.up[e] @ token + moe.up_bias[e]) + moe.down_bias[e])
            torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)
    assert (moe(x) - (setattr(moe, "task", 0) or moe(x))).abs().max() > 1e-3


def test_tasks_have_gates_of_their_own_and_share_experts():
    torch.manual_seed(0)
    model = EdgeMoEViT((1, 8, 8), depth=4, dim=16, tasks=2, experts=8, k=2)
    x = torch.randn(5, 1, 8, 8)
    first, second = (model.for_task(t)(x) for t in (0, 1))
    assert (first - second).abs().max() > 1e-3
    assert len(model.experts()) == 2
    second.sum().backward()
    for moe in model.experts():
        assert (moe.gates.grad[0] == 0).all()
        assert (moe.gates.grad[1] != 0).any()
    with pytest.raises(ValueError, match="task must be 0 to 1"):
        model.for_task(2)


def test_traffic_counts_what_is_read():
    torch.manual_seed(0)
    model = EdgeMoEViT((1, 8, 8), depth=2, dim=16, experts=8, k=2).eval()
    found = model.traffic(torch.randn(10, 1, 8, 8))
    assert found.by_token == 10 * 16 * 2
    assert 2 <= found.by_expert <= 8
    assert found.share == 0.25


def test_all_experts_alike_are_one_dense_network():
    torch.manual_seed(0)
    moe = TaskMoE(6, 5, experts=4, k=2).double()
    for p in (moe.up, moe.up_bias, moe.down, moe.down_bias):
        p.data[:] = p.data[:1].clone()
    x = torch.randn(3, 6, dtype=torch.float64)
    dense = F.linear(F.gelu(F.linear(x, moe.up[0], moe.up_bias[0])), moe.down[0], moe.down_bias[0])
    torch.testing.assert_close(moe(x), dense)
    with pytest.raises(ValueError, match="k must lie"):
        TaskMoE(6, 5, experts=4, k=5)
