"""Sigmoid attention against limits and sums in closed form."""

import math

import pytest
import torch

from logitkit.attention import SigmoidAttention, sigmoid_attention


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("n", [2, 3, 64, 1000, 4096])
def test_equal_values_at_zero_scores_are_scaled_by_n_over_n_plus_1(n):
    v = torch.tensor([1.5, -2.0], dtype=torch.float64)
    q = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    out = sigmoid_attention(q, torch.randn(1, 1, n, 4, dtype=torch.float64), v.expand(1, 1, n, 2))
    torch.testing.assert_close(out, (n / (n + 1) * v).expand(1, 1, 3, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_a_very_low_bias_gives_exponential_weights(causal):
    q, k, v = inputs(7)
    weights = (q @ k.mT / math.sqrt(8)).exp()
    if causal:
        weights = weights.tril()
    out = sigmoid_attention(q, k, v, is_causal=causal, bias=-30.0)
    torch.testing.assert_close(out * math.exp(30), weights @ v, rtol=1e-8, atol=0)


def test_loop_over_plain_floats():
    q, k, v = inputs(5)
    allowed = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    out = sigmoid_attention(q, k, v, allowed, scale=0.7, bias=-0.3)
    for i in range(5):
        total = torch.zeros(8, dtype=torch.float64)
        for j in range(5):
            if allowed[i, j]:
                score = 0.7 * sum(float(a) * float(b) for a, b in zip(q[1, 2, i], k[1, 2, j], strict=True))
                total += v[1, 2, j] / (1 + math.exp(0.3 - score))
        torch.testing.assert_close(out[1, 2, i], total)


def test_the_order_of_keys_does_not_matter():
    q, k, v = inputs(9)
    order = torch.randperm(9)
    torch.testing.assert_close(
        sigmoid_attention(q, k[:, :, order], v[:, :, order]), sigmoid_attention(q, k, v)
    )


def test_gradients():
    q, k, v = (x[:1, :1, :4, :3].clone().requires_grad_() for x in inputs(4))
    assert torch.autograd.gradcheck(lambda *x: sigmoid_attention(*x, is_causal=True), (q, k, v))


def test_a_fixed_length_keeps_the_weights_of_a_prefix():
    """With n_ref a causal row is the same however long the sequence; without, the bias follows the length."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    fixed, open_ended = SigmoidAttention(8, 2, n_ref=6), SigmoidAttention(8, 2)
    torch.testing.assert_close(fixed(x[:, :4], is_causal=True)[0], fixed(x, is_causal=True)[0][:, :4])
    short, long = open_ended(x[:, :4], is_causal=True)[0], open_ended(x, is_causal=True)[0][:, :4]
    assert (short - long).abs().max() > 1e-3
    with pytest.raises(ValueError, match="n_ref"):
        open_ended.step(x)


def test_a_learned_bias_starts_at_minus_log_n_and_is_one_per_head():
    torch.manual_seed(0)
    learned = SigmoidAttention(8, 2, score_bias="learned", n_ref=6)
    plain = SigmoidAttention(8, 2, n_ref=6)
    plain.load_state_dict(learned.state_dict(), strict=False)
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(learned(x)[0], plain(x)[0])
    learned.head_bias.data[1] = -100.0  # the second head is silent
    q, k, v = plain.project(x, x, x)
    first = plain.attend(q, k, v, None, None)
    first[:, 1] = 0
    torch.testing.assert_close(learned(x)[0], plain.merge(first))


def test_layer_scale_multiplies_the_output():
    torch.manual_seed(0)
    scaled, plain = SigmoidAttention(8, 2, layer_scale=1e-4), SigmoidAttention(8, 2)
    plain.load_state_dict(scaled.state_dict(), strict=False)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(scaled(x)[0], 1e-4 * plain(x)[0])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"score_bias": "log"}, "score_bias must be"),
        ({"score_bias": "learned"}, "give n_ref"),
        ({"n_ref": 0}, "n_ref must be at least 1"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(ValueError, match=match):
        SigmoidAttention(8, 2, **settings)
