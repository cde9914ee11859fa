"""Rank-augmented linear attention against its dense weights and the authors' numbers."""

import pytest
import torch

from logitkit.attention import RankAugmentedAttention, rank_augmented_attention, rank_report
from logitkit.attention.rala import context_weights
from logitkit.ops import linear_attention


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def phi(x):
    return torch.where(x > 0, x + 1, x.exp())


def test_the_weights_of_the_paper():
    q, k, v = inputs(7)
    seen = torch.tensor([True, True, False, True, True, False, True])
    pq, pk = phi(q), phi(k)[:, :, seen]
    a = 5 * (8**-0.5 * pq.mean(-2, keepdim=True) @ pk.mT).softmax(-1)
    w = pq @ (a.mT * pk).mT / 5
    w = w / (pq @ (a.mT * pk).mean(-2, keepdim=True).mT + 1e-6)
    found = rank_augmented_attention(q, k, v, seen[None])
    torch.testing.assert_close(found, w @ v[:, :, seen], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3, 7).double(), rtol=0, atol=2e-6)
    nobody = torch.zeros(1, 7, dtype=torch.bool)
    assert torch.equal(rank_augmented_attention(q, k, v, nobody), torch.zeros_like(v))


def test_the_keys_weights_are_1_in_the_mean():
    q, k, _ = inputs(7)
    mean = q.mean(-2, keepdim=True)
    torch.testing.assert_close(context_weights(mean, k, 0.3).mean(-2), torch.ones(2, 3, 1).double())
    seen = torch.tensor([True, False, True, True, True, False, True])[:, None]
    weights = context_weights(mean, k, 0.3, seen)
    assert weights.masked_select(~seen).abs().max() == 0
    torch.testing.assert_close(weights.sum(-2), torch.full((2, 3, 1), 5.0).double())


def test_equal_keys_give_plain_linear_attention():
    q, k, v = inputs(6)
    k = k[:, :, :1].expand_as(k)
    plain = linear_attention(q, k, v, feature="elu+1", eps=1e-6)
    torch.testing.assert_close(rank_augmented_attention(q, k, v), plain, rtol=1e-5, atol=1e-6)
    _, k, _ = inputs(6, seed=1)
    plain = linear_attention(q, k, v, feature="elu+1")
    found = rank_augmented_attention(q, k, v, augment=False)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert (rank_augmented_attention(q, k, v) - plain).abs().max() > 0.01


def test_numbers_of_the_authors_code():
    """qhfan/RALA, classfication/RALA.py, GateLinearAttentionNoSilu and RoPE, in float64 on sine waves.

    Theirs turns neighbouring features together, ours the halves: the features of a head are reordered."""
    part = RankAugmentedAttention(16, 2, grid=(2, 3)).double()
    qkvo, qkvo_bias = 0.5 * wave(64, 16), 0.5 * wave(64, k=1.1)
    order = torch.arange(16).view(4, 2, 2).mT.flatten()  # of a head's halves: 0 2 1 3
    order = torch.cat([order, 16 + order, torch.arange(32, 48)])
    with torch.no_grad():
        part.in_proj.weight.copy_(qkvo[order]), part.in_proj.bias.copy_(qkvo_bias[order])
        part.gate.weight.copy_(qkvo[48:]), part.gate.bias.copy_(qkvo_bias[48:])
        theirs = [part.lepe.weight, part.lepe.bias, part.out_proj.weight, part.out_proj.bias]
        for i, p in enumerate(theirs, start=2):
            p.copy_(0.5 * wave(*p.shape, k=1 + 0.1 * i))
    x = wave(2, 6, 16, k=0.3).requires_grad_()
    out = part(x)[0]
    out.square().sum().backward()
    for found, expected in (
        (out[0, 4, :4], [0.398978971, -0.043140917, 1.148864366, 0.454269458]),
        (out[1, 0, -4:], [0.045162884, -0.831304194, 0.01092713, -0.068825925]),
        (x.grad[1, 3, :4], [-0.4724472, -0.81839128, 0.68333762, 0.6423027]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_positions_are_in_the_numerator_only():
    part = RankAugmentedAttention(16, 2, grid=(2, 3)).double()
    q, k = (torch.randn(1, 2, 6, 8, dtype=torch.float64) for _ in range(2))
    weights = part.attend(q, k, torch.eye(6).double().expand(1, 2, 6, 6), None, None)
    pq, pk = phi(q), phi(k)
    pk = pk * context_weights(pq.mean(-2, keepdim=True), pk, 8**-0.5)
    expected = part.turn(pq) @ part.turn(pk).mT / (pq @ pk.sum(-2)[..., None] + 6e-6)
    torch.testing.assert_close(weights, expected)
    assert (weights.sum(-1) - 1).abs().max() > 0.01


def test_the_gate_raises_the_rank():
    part = RankAugmentedAttention(16, 2, grid=(4, 4), lepe=1).double()
    x = torch.randn(1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        part.lepe.weight.fill_(1.0), part.lepe.bias.zero_()
        part.in_proj.bias.zero_()
        part.in_proj.weight[32:] = torch.randn(16, 1).double() @ torch.randn(1, 16).double()
    q, k, v = part.project(x, x, x)
    mixed = part.attend(q, k, v, None, None).transpose(1, 2).flatten(2)
    assert torch.linalg.matrix_rank(mixed) <= 2  # one for each head
    assert torch.linalg.matrix_rank(mixed * part.gate(x)) > 2
    assert rank_report(part, x)["buffer rank"] == 1.0
    assert rank_report(part, x)["output rank"] > 2


def test_report_of_known_ranks():
    part = RankAugmentedAttention(4, 1, bias=False, rope=False, augment_out=False, lepe=1).double()
    with torch.no_grad():
        for p in part.parameters():
            p.zero_()
        part.in_proj.weight[8:] = torch.eye(4)
        part.lepe.weight.fill_(1.0)
        part.out_proj.weight.copy_(torch.eye(4))
    x = torch.eye(4).double()[None] - 0.25  # averages to zero, three equal singular values
    report = rank_report(part, x)
    assert report["output rank"] == 3.0
    assert report["output entropy rank"] == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [{"lepe": 4}, {"lepe": 0}])
def test_bad_sizes(bad):
    with pytest.raises(ValueError, match="lepe must be an odd"):
        RankAugmentedAttention(16, 2, **bad)
    with pytest.raises(ValueError, match="multiple of 4 features per head, got 6"):
        RankAugmentedAttention(12, 2)
    with pytest.raises(ValueError, match="no causal form"):
        rank_augmented_attention(*inputs(3), is_causal=True)
