"""Tensor attention against loops over all tuples, ordinary attention, and the truncated exponential."""

import itertools
import math

import pytest
import torch

from logitkit.attention import (
    TensorAttention,
    khatri_rao,
    required_degree,
    softmax_attention,
    tensor_attention,
)
from logitkit.attention import tensor as part_file


def inputs(n=5, dim=3, places=2, out=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 2, n, dim, generator=g, dtype=torch.float64)
    keys = [torch.randn(2, 2, n, dim, generator=g, dtype=torch.float64) for _ in range(places)]
    return q, keys, [torch.randn(2, 2, n, out, generator=g, dtype=torch.float64) for _ in range(places)]


def by_hand(q, keys, values, exp, seen=None, causal=None):
    """Every tuple of keys, for one batch row and head."""
    n, dim = q.shape
    out = torch.zeros(n, values[0].shape[-1], dtype=torch.float64)
    for i in range(n):
        total = 0.0
        for at in itertools.product(range(len(keys[0])), repeat=len(keys)):
            if any((causal is not None and j > i + causal) or (seen is not None and not seen[j]) for j in at):
                continue
            score = sum(
                float(q[i, c]) * math.prod(float(k[j, c]) for k, j in zip(keys, at, strict=True))
                for c in range(dim)
            )
            w = exp(score / dim)
            total += w
            out[i] += w * torch.stack([v[j] for v, j in zip(values, at, strict=True)]).prod(0)
        out[i] /= total if total else 1
    return out


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("causal", [None, 0, -1])
@pytest.mark.parametrize("method", ["dense", "chunked"])
def test_loop_over_tuples(places, causal, method, monkeypatch):
    monkeypatch.setattr(part_file, "CHUNK", 30)  # several chunks
    q, keys, values = inputs(n=4 if places == 3 else 5, places=places)
    seen = torch.tensor([True, True, False, True, True])[: q.shape[-2]]
    found = tensor_attention(q, keys, values, method, seen=seen, causal=causal)
    one = [x[1, 0] for x in (q, *keys, *values)]
    expected = by_hand(one[0], one[1 : 1 + places], one[1 + places :], math.exp, seen, causal)
    torch.testing.assert_close(found[1, 0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("causal", [None, 0, 1])
def test_poly_is_the_truncated_exponential(degree, causal):
    q, keys, values = inputs(n=4)
    seen = torch.tensor([True, False, True, True])

    def series(s):
        return sum(s**m / math.factorial(m) for m in range(degree + 1))

    found = tensor_attention(q, keys, values, "poly", degree, seen, causal)
    expected = by_hand(q[0, 1], [k[0, 1] for k in keys], [v[0, 1] for v in values], series, seen, causal)
    torch.testing.assert_close(found[0, 1], expected, rtol=0, atol=1e-9)


def test_error_of_the_series_is_within_its_bound():
    bound, dim = 0.9, 4
    x = bound * (2 * torch.rand(3, 20, dim, generator=torch.Generator().manual_seed(0)).double() - 1)
    scores = torch.einsum("ic,jc,lc->ijl", *x) / dim
    for g in (2, 4, 6):
        series = sum(scores**m / math.factorial(m) for m in range(g + 1))
        limit = bound ** (3 * (g + 1)) * math.exp(bound**3) / math.factorial(g + 1)
        assert (series - scores.exp()).abs().max() <= limit
        assert required_degree(bound, limit * 1.001) == g
    assert required_degree(bound, limit * 0.999) == 8
    with pytest.raises(ValueError, match="must be positive"):
        required_degree(0.0, 1e-3)


@pytest.mark.parametrize("method", ["dense", "chunked"])
def test_a_second_place_of_ones_is_ordinary_attention(method):
    q, (k, _), (v, _) = inputs()
    found = tensor_attention(q, [k, torch.ones_like(k)], [v, torch.ones_like(v)], method)
    torch.testing.assert_close(found, softmax_attention(q, k, v, scale=1 / 3))


@pytest.mark.parametrize(("method", "degree"), [("dense", None), ("chunked", None), ("poly", 4)])
def test_places_can_be_exchanged(method, degree):
    q, keys, values = inputs()
    found = tensor_attention(q, keys, values, method, degree)
    torch.testing.assert_close(tensor_attention(q, keys[::-1], values[::-1], method, degree), found)


def test_large_scores_and_rows_that_see_nothing():
    q, keys, values = inputs()
    for method in ("dense", "chunked"):
        assert tensor_attention(1e4 * q, keys, values, method).isfinite().all()
    nothing = torch.zeros(5, dtype=torch.bool)
    for method, degree in (("dense", None), ("chunked", None), ("poly", 2)):
        assert tensor_attention(q, keys, values, method, degree, nothing).abs().max() == 0


@pytest.mark.parametrize(("method", "degree"), [("dense", None), ("chunked", None), ("poly", 2)])
def test_gradients(method, degree):
    q, keys, values = inputs(n=3, dim=2, out=1)
    x = [t[:1, :1].clone().requires_grad_() for t in (q, *keys, *values)]

    def mix(q, a, b, c, d):
        return tensor_attention(q, [a, b], [c, d], method, degree, causal=0)

    assert torch.autograd.gradcheck(mix, x)


def test_rows_of_the_khatri_rao_product():
    a, b = torch.arange(6.0).view(3, 2), torch.arange(4.0).view(2, 2)
    rows = khatri_rao([a, b])
    torch.testing.assert_close(rows[2 * 2 + 1], a[2] * b[1])


@pytest.mark.parametrize("settings", [{"order": 2}, {"order": 4}, {"degree": 2}])
def test_modules_of_other_orders(settings):
    torch.manual_seed(0)
    part, x = TensorAttention(8, 4, **settings).double(), torch.randn(2, 4, 8, dtype=torch.float64)
    out = part(x, is_causal=True)[0]
    first, state = part.step(x[:, :3])
    last, _ = part.step(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, last], 1), out)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda q, k, v: tensor_attention(q, k, v[:1]), "as many keys as values"),
        (lambda q, k, v: tensor_attention(q, k, v, "fast"), "method must be"),
        (lambda q, k, v: tensor_attention(q, k, v, "poly"), "degree goes with"),
        (lambda q, k, v: tensor_attention(q, k, v, "poly", 3), "degree must be even"),
        (lambda q, k, v: TensorAttention(8, 2, order=1), "order must be"),
        (lambda q, k, v: TensorAttention(8, 2, degree=1), "degree must be even"),
        (lambda q, k, v: TensorAttention(8, 2, dropout=0.1), "dropout"),
    ],
)
def test_calls_that_cannot_be(call, match):
    with pytest.raises(ValueError, match=match):
        call(*inputs())


def test_the_dense_form_refuses_too_many_scores():
    q, keys, values = (torch.zeros(300, 1),) * 1, [torch.zeros(300, 1)] * 2, [torch.zeros(300, 1)] * 2
    with pytest.raises(ValueError, match="at most"):
        tensor_attention(q[0], keys, values)
