"""cosFormer attention against its dense quadratic form."""

import math

import pytest
import torch

from logitkit.attention import CosformerAttention, cosformer_attention


def dense(q, k, v, max_len, causal, seen=None):
    i, j = torch.arange(q.shape[-2]).double()[:, None], torch.arange(k.shape[-2]).double()
    weights = (q.relu() @ k.relu().mT) * torch.cos(math.pi / 2 * (i - j) / max_len)
    weights = weights.tril() if causal else weights
    weights = weights if seen is None else weights * seen
    return weights @ v / (weights.sum(-1, keepdim=True) + 0.01)


def inputs(queries, keys, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, 4, generator=g, dtype=torch.float64) for n in (queries, keys, keys)]


@pytest.mark.parametrize("max_len", [None, 9, 100])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(7, 7, False), (7, 7, True), (3, 9, False)])
def test_the_linear_form_is_the_quadratic_form(queries, keys, causal, max_len):
    q, k, v = inputs(queries, keys)
    found = cosformer_attention(q, k, v, is_causal=causal, max_len=max_len)
    expected = dense(q, k, v, max_len or max(queries, keys), causal)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_hidden_keys_and_rows_without_features():
    q, k, v = inputs(5, 5)
    seen = torch.tensor([True, True, False, True, False])
    torch.testing.assert_close(
        cosformer_attention(q, k, v, seen[None]), dense(q, k, v, 5, False, seen), rtol=0, atol=1e-9
    )
    assert (cosformer_attention(-q.abs(), k, v) == 0).all()


def test_gradients():
    q, k, v = (x[:1, :1].clone().requires_grad_() for x in inputs(4, 4))
    assert torch.autograd.gradcheck(lambda *x: cosformer_attention(*x, is_causal=True), (q, k, v))


def test_more_tokens_than_max_len():
    q, k, v = inputs(5, 5)
    with pytest.raises(ValueError, match="max_len must be at least"):
        cosformer_attention(q, k, v, max_len=4)
    part = CosformerAttention(8, 2, max_len=4)
    with pytest.raises(ValueError, match="max_len must be at least"):
        part(torch.randn(1, 5, 8))
    _, state = part.step(torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="max_len must be at least"):
        part.step(torch.randn(1, 1, 8), state)
    with pytest.raises(ValueError, match="max_len"):
        CosformerAttention(8, 2, max_len=0)
    with pytest.raises(ValueError, match="step needs max_len"):
        CosformerAttention(8, 2).step(torch.randn(1, 1, 8))
    with pytest.raises(ValueError, match="no scale"):
        cosformer_attention(q, k, v, scale=1.0)
