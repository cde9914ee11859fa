"""Selective attention against softmax attention, plain floats, and what the official code printed."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import SelectiveAttention, SelectiveTemperature, SoftmaxAttention


def made(**settings):
    torch.manual_seed(0)
    part = SelectiveAttention(8, 2, **settings).double()
    for p in part.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return part


def tokens(n=6, seed=0):
    return torch.randn(2, n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("position", "a"), [("expexp", 50.0), ("sigmoid", -50.0), (None, None)])
def test_without_its_terms_it_is_softmax_attention(position, a):
    part, plain = made(position=position, token=False), SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict(), strict=False)
    for t in part.temperature.values():
        if a is not None:
            t.a.data.fill_(a)
    x = tokens()
    torch.testing.assert_close(part(x, is_causal=True)[0], plain(x, is_causal=True)[0])


@pytest.mark.parametrize("rope", [False, True])
def test_loop_over_plain_floats(rope):
    """Scores of one row times its t, whether or not queries are turned by their position first."""
    part, x = made(rope=rope), tokens()
    plain = SoftmaxAttention(8, 2, rope=rope).double()
    plain.load_state_dict(part.state_dict(), strict=False)
    q, k, v = plain.project(x, x, x)
    raw_q, _, raw_v = part.split(x, x, x)
    expected = torch.zeros_like(v)
    for b in range(2):
        t = {}
        for name, raw in (("q", raw_q), ("v", raw_v)):
            a, w = part.temperature[name].a.item(), part.temperature[name].w
            for n in range(6):
                p = torch.cat([raw[b, 0, n], raw[b, 1, n]])
                token = math.tanh((F.gelu(p) * w).sum().item())
                t[name, n] = 1 + math.log(n + 1) / (1 + math.exp(-a)) + token
        for h in range(2):
            for i in range(6):
                scores = [t["q", i] * (q[b, h, i] @ k[b, h, j]).item() / 2 for j in range(i + 1)]
                total = sum(math.exp(s) for s in scores)
                for j, s in enumerate(scores):
                    expected[b, h, i] += math.exp(s) / total * t["v", j] * v[b, h, j]
    torch.testing.assert_close(part(x, is_causal=True)[0], part.merge(expected))


def test_position_term_of_the_official_code():
    """1 + exp(-exp(b)) log n at n = 1, 2, 64, 1024: lit_gpt/gpt_2_PTS.py of umich-sota/selective_attention,
    its line run on ones, with its first b of 2.0 and 1.5 and with 0."""
    printed = {
        2.0: [1.0, 1.000428350, 1.002570102, 1.004283504],
        1.5: [1.0, 1.007842466, 1.047054794, 1.078424657],
        0.0: [1.0, 1.254994597, 2.529967585, 3.549945974],
    }
    for b, expected in printed.items():
        t = SelectiveTemperature(4, "expexp", token=False).double()
        t.a.data.fill_(b)
        found = t(torch.zeros(1, 1024, 4, dtype=torch.float64))[0, [0, 1, 63, 1023]]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)


def test_rows_sharpen_with_t():
    """The entropy of a row falls as its t grows."""
    part, x = made(on=("q",), position=None), tokens()
    entropies = []
    for scale in (-3.0, -1.0, 0.0, 1.0, 3.0):  # tanh of these is added to 1
        q, k, _ = part.split(x, x, x)
        t = 1 + math.tanh(scale)
        weights = part.attend(t * q, k, torch.eye(6).double().expand(2, 2, 6, 6), None, None)
        entropies.append(-(weights * weights.log()).sum(-1))
    for low, high in itertools.pairwise(entropies):
        assert (high <= low + 1e-12).all()


def test_a_step_counts_positions_from_the_first_token():
    part, x = made(position="sigmoid"), tokens(12)
    out, state = part.step(x[:, :8])
    later, _ = part.step(x[:, 8:], state)
    torch.testing.assert_close(torch.cat([out, later], 1), part(x, is_causal=True)[0])
    fresh, _ = part.step(x[:, 8:])
    assert (fresh - later).abs().max() > 1e-3


def test_gradients():
    part, x = made(), tokens(4)[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: part(x, is_causal=True)[0], (x,))


def test_new_parameters_are_few():
    """At most 0.5 % in 12 layers of width 768, each of 12 x 768^2 weights."""
    part, plain = SelectiveAttention(768, 12), SoftmaxAttention(768, 12)
    new = sum(p.numel() for p in part.parameters()) - sum(p.numel() for p in plain.parameters())
    assert new == 2 * (768 + 1)
    assert new <= 0.005 * 12 * 768**2


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="position must be"):
        SelectiveAttention(8, 2, position="log")
    with pytest.raises(ValueError, match="on must name"):
        SelectiveAttention(8, 2, on=("x",))
