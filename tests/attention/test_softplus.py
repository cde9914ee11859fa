"""Softplus attention against loops over plain floats, and its limits."""

import math

import pytest
import torch

from logitkit.attention import SoftplusAttention, reweight, softplus_attention


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


def weights_of(q, k, **settings):
    """The weights, as what values of one-hot rows become."""
    n = k.shape[-2]
    eye = torch.eye(n, dtype=q.dtype).expand(*k.shape[:-2], n, n)
    return softplus_attention(q, k, eye, **settings)


def by_hand(q, k, allowed, power, offset):
    """One head, plain floats."""
    dim, rows = q.shape[-1], []
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if allowed[i][j]]
        scale = math.log(dim) * math.log(len(seen)) / math.sqrt(dim) if seen else 0.0
        w = {
            j: math.log1p(math.exp(scale * sum(float(a) * float(b) for a, b in zip(q[i], k[j], strict=True))))
            for j in seen
        }
        total = sum(w.values())
        sharp = {j: max(v / total * len(seen) - offset, 0.0) ** power for j, v in w.items()}
        sum_ = sum(sharp.values())
        rows.append([sharp.get(j, 0.0) / sum_ if sum_ else 0.0 for j in range(len(k))])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("power", "offset"), [(1, 0.0), (3, 0.0), (15, 0.0), (1, 0.5), (3, 0.9)])
def test_loop_over_plain_floats(power, offset):
    q, k, _ = inputs(6)
    allowed = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    allowed[3] = False
    found = weights_of(q, k, attn_mask=allowed, power=power, offset=offset)
    expected = by_hand(q[1, 2], k[1, 2], allowed.tolist(), power, offset)
    torch.testing.assert_close(found[1, 2], expected)
    assert (found.masked_select(~allowed) == 0).all()


def test_rows_sum_to_one_and_the_first_is_well_defined():
    q, k, _ = inputs(9)
    for settings in ({}, {"power": 3.0}, {"power": 3.0, "offset": 0.5}):
        found = weights_of(q, k, is_causal=True, **settings)
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
        assert (found[..., 0, 0] == 1).all()
        assert (found.triu(1) == 0).all()


def test_power_1_without_offset_changes_nothing():
    q, k, _ = inputs(7)
    a = weights_of(q, k)
    torch.testing.assert_close(reweight(a, torch.tensor(7), power=1.0), a)


def test_a_large_power_leaves_the_largest_weight():
    q, k, _ = inputs(7)
    scores = q @ k.mT
    one_hot = torch.nn.functional.one_hot(scores.argmax(-1), 7).double()
    torch.testing.assert_close(weights_of(q, k, power=1e4), one_hot, atol=1e-6, rtol=0)
    a = torch.tensor([[0.2, 0.5, 0.3]])
    torch.testing.assert_close(
        reweight(a, torch.tensor([3]), power=200.0), torch.tensor([[0.0, 1, 0]]), atol=1e-6, rtol=0
    )


def test_a_row_that_the_offset_empties_stays():
    uniform = torch.full((2, 4), 0.25)
    torch.testing.assert_close(reweight(uniform, torch.tensor([4, 4]), power=3.0, offset=1.5), uniform)
    q, k, v = inputs(5)
    torch.testing.assert_close(softplus_attention(0 * q, k, v, offset=1.0), v.mean(-2, keepdim=True) + 0 * v)


@pytest.mark.parametrize("size", [100.0, -100.0])
def test_half_precision_where_exp_overflows(size):
    """Scores of 10^4 and -10^4, far beyond what exp can hold."""
    q = torch.full((1, 1, 4, 4), 50.0, dtype=torch.float16)
    k = torch.full((1, 1, 4, 4), size, dtype=torch.float16)
    k[..., 1, :] /= 2
    for settings in ({"power": 1.0}, {"power": 15.0}, {"power": 3.0, "offset": 0.1}):
        found = weights_of(q, k, **settings)
        assert found.isfinite().all()
        torch.testing.assert_close(found.sum(-1).float(), torch.ones(1, 1, 4), atol=5e-3, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_gradients(offset):
    q, k, v = (x[:1, :1, :4, :3].clone().requires_grad_() for x in inputs(4))

    def mix(q, k, v):
        return softplus_attention(q, k, v, is_causal=True, power=3.0, offset=offset)

    assert torch.autograd.gradcheck(mix, (q, k, v))


@pytest.mark.parametrize("power", [3.0, 15.0])
def test_power_can_be_raised_after_training(power):
    torch.manual_seed(0)
    part = SoftplusAttention(8, 2).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    plain = part(x, is_causal=True, need_weights=True, average_attn_weights=False)[1]
    part.power = power
    sharp = part(x, is_causal=True, need_weights=True, average_attn_weights=False)[1]
    expected = plain**power / (plain**power).sum(-1, keepdim=True)
    torch.testing.assert_close(sharp, expected)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="power must be positive"):
        SoftplusAttention(8, 2, power=0)
    with pytest.raises(ValueError, match="offset must not be negative"):
        SoftplusAttention(8, 2, offset=-1)
