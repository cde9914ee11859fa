"""The dynamical-systems form of attention, state-space models and recurrences against their dense forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import DSF, NormAttention, linear_attention, norm_attention, taylor_attention

T, N, W = 7, 3, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both_forms(system, u):
    """scan, which the kernel's dense map has to give too."""
    y = system.scan(u)
    torch.testing.assert_close(torch.einsum("ijcd,jd->ic", system.kernel(), u), y, rtol=0, atol=1e-9)
    return y


def test_linear_attention_is_a_system():
    q, k, v = draw(T, N), draw(T, N, seed=1), draw(T, W, seed=2)
    phi = [torch.where(x > 0, x + 1, x.exp()) for x in (q, k)]
    weights = (phi[0] @ phi[1].T).tril()
    expected = weights @ v / weights.sum(1, keepdim=True)
    torch.testing.assert_close(both_forms(DSF.from_linear_attention(q, k, W), v), expected)
    part = linear_attention(q[None], k[None], v[None], is_causal=True)[0]
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)  # the part adds 1e-6 to the sums


@pytest.mark.parametrize("decay", [False, True])
def test_both_realisations_of_normalised_attention(decay):
    q, k, v, eta = draw(T, N), draw(T, N, seed=1), draw(T, W, seed=2), draw(T, seed=3).exp()
    expected = torch.stack([sum((q[i] @ k[j]) * v[j] for j in range(i + 1)) / eta[i] for i in range(T)])
    torch.testing.assert_close(both_forms(DSF.from_norm_attention(q, k, eta, W, decay), v), expected)
    part = norm_attention(q[None], k[None], v[None], eta.log()[None], is_causal=True)[0]
    torch.testing.assert_close(part, expected)


def test_selective_state_space_model():
    delta, A = F.softplus(draw(T, W)), draw(W, N, seed=1).exp()
    into, out, u = draw(T, N, seed=2), draw(T, N, seed=3), draw(T, W, seed=4)
    expected = torch.zeros(T, W, dtype=torch.float64)
    for c in range(W):
        h = torch.zeros(N, dtype=torch.float64)
        for i in range(T):
            h = (-delta[i, c] * A[c]).exp() * h + delta[i, c] * into[i] * u[i, c]
            expected[i, c] = out[i] @ h
    torch.testing.assert_close(both_forms(DSF.from_s6(delta, A, into, out), u), expected)


@pytest.mark.parametrize("a", [None, 0.7, -1.0])
def test_gated_recurrence(a):
    f, i, o, u = (draw(T, W, seed=s) for s in range(4))
    decay = 1 / (1 + (-f).exp()) if a is None else (-max(a, 0) * F.softplus(f)).exp()
    h, expected = torch.zeros(W, dtype=torch.float64), []
    for t in range(T):
        h = decay[t] * h + i[t].sigmoid() * u[t]
        expected.append(o[t].sigmoid() * h)
    torch.testing.assert_close(both_forms(DSF.from_qlstm(f, i, o, a), u), torch.stack(expected))
    if a is not None:
        torch.testing.assert_close(DSF.from_qlstm(f, i, o, a).L, (-f).sigmoid() ** max(a, 0))


def test_a_direct_term_and_sizes():
    system = DSF(draw(T, N), draw(T, N, W), draw(T, 4, N), draw(4, W))
    u = draw(T, W, seed=1)
    plain = DSF(system.L, system.B, system.C)
    torch.testing.assert_close(both_forms(system, u), plain.scan(u) + u @ system.D.T)
    with pytest.raises(ValueError, match="do not fit"):
        DSF(draw(T, N), draw(T, W, N), draw(T, 4, N))


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_as_the_limit_of_its_taylor_series(causal):
    q, k, v = draw(5, 4), draw(6 - causal, 4, seed=1), draw(6 - causal, 2, seed=2)
    q = q / (q @ k.T).abs().amax()
    scores = q @ k.T
    scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf) if causal else scores
    exact = scores.softmax(1) @ v
    errors = [(taylor_attention(q, k, v, p, causal) - exact).abs().max().item() for p in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_normalised_attention_of_the_official_code():
    """SelfNormAttention of zoology/mixers/attention.py, IntelligentControlSystems/dsf-mqar, run on these."""
    x = torch.arange(48).double().mul(0.37).sin().view(1, 4, 2, 2, 3)
    v = torch.arange(16).double().mul(0.71).cos().view(1, 4, 2, 2)
    log_eta = torch.arange(8).double().mul(0.53).sin().view(1, 4, 2)
    q, k = x.unbind(2)
    found = norm_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), log_eta.transpose(1, 2), is_causal=True
    )  # fmt: skip
    printed = [
        0.311276401, 0.236060156, -0.132755616, 0.4688177, 0.12539813, 0.243412055, 0.178236819, -0.154102285,
        -0.044853446, -0.130401314, 0.607118412, -0.764019481, -1.948372371, -2.332986608, 1.051161273,
        3.016112712,
    ]  # fmt: skip
    torch.testing.assert_close(
        found.transpose(1, 2).flatten(), torch.tensor(printed, dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_the_module_divides_each_head_by_its_own_eta():
    torch.manual_seed(0)
    part, x = NormAttention(8, 2).double(), draw(2, 5, 8)
    q, k, v = super(NormAttention, part).project(x, x, x)
    eta = (x @ part.log_eta.weight.T + part.log_eta.bias).exp()
    mixed = torch.einsum("bhid,bhjd,bhjc->bhic", q, k, v) / eta.transpose(1, 2)[..., None]
    torch.testing.assert_close(part(x)[0], part.merge(mixed))
    part.log_eta.bias.data.fill_(-1e6)
    assert part(x)[0].isfinite().all()
