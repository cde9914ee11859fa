"""The GPU kernel of linear attention, by Triton's interpreter on the CPU and on a GPU where there is one."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import KernelWarning, linear_attention, use

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAUSAL = pytest.mark.parametrize("is_causal", [False, True])
NORMALIZE = pytest.mark.parametrize("normalize", [False, True])


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks, blocks of features and parts of a scan of few enough that small problems have several."""
    from logitkit.ops.linear_attention import triton

    for name, size in (("CHUNK", 16), ("BLOCK", 16), ("PART", 2)):
        monkeypatch.setattr(triton, name, size)


def dense(q, k, v, state, *, feature="elu+1", is_causal=False, normalize=True, eps=0.0):
    """The matrix of weights in one piece, the initial state beside it; (output, S, z)."""
    if feature == "elu+1":
        q, k = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (q, k))
    elif feature is not None:
        q, k = feature(q), feature(k)
    s, z = state
    weights = torch.einsum("...id,...jd->...ij", q, k)
    if is_causal:
        hidden = torch.arange(k.shape[-2]) > torch.arange(q.shape[-2])[:, None]
        weights = weights.masked_fill(hidden.to(q.device), 0.0)
    out = torch.einsum("...ij,...je->...ie", weights, v) + torch.einsum("...id,...de->...ie", q, s)
    if normalize:
        out = out / (weights.sum(-1) + torch.einsum("...id,...d->...i", q, z) + eps).unsqueeze(-1)
    return out, s + torch.einsum("...jd,...je->...de", k, v), z + k.sum(-2)


def sample(shape, keys=None, dv=None, dtype=torch.float32, features=None):
    """query, key, value and an initial state."""
    g = torch.Generator().manual_seed(0)
    *lead, n, d = shape
    keys, dv, features = keys or n, dv or d, features or d
    qkv = [torch.randn(*lead, *s, generator=g).to(dtype) for s in ((n, d), (keys, d), (keys, dv))]
    state = torch.randn(*lead, features, dv, generator=g), torch.rand(*lead, features, generator=g)
    return [x.to(DEVICE) for x in (*qkv, *state)]


def compare(inputs, tol, cotangents=(1.0, 1.0, 1.0), **options):
    """Output, final state and the gradients of everything, with cotangents on all three."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = dense(*exact[:3], exact[3:], **options)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with use("triton"):
        out, end = linear_attention(
            *leaves[:3], initial_state=tuple(leaves[3:]), return_state=True, **options
        )
    got = out, *end
    g = torch.Generator().manual_seed(1)
    above = [
        size * torch.randn(x.shape, generator=g).to(DEVICE, out.dtype).double()
        for size, x in zip(cotangents, expected, strict=True)
    ]
    torch.autograd.backward(expected, above)
    torch.autograd.backward(got, [c.to(x.dtype) for c, x in zip(above, got, strict=True)])
    pairs = {name: (a, b) for name, a, b in zip(("output", "S", "z"), got, expected, strict=True)}
    names = ("query", "key", "value", "initial S", "initial z")
    pairs |= {name: (a.grad, b.grad) for name, a, b in zip(names, leaves, exact, strict=True)}
    for name, (a, b) in pairs.items():
        assert a.shape == b.shape, name
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)
        assert error < tol, f"{name}: {error:.2e}"
    assert got[0].dtype == leaves[0].grad.dtype == inputs[0].dtype


@CAUSAL
@NORMALIZE
@pytest.mark.parametrize("shape", [(1, 1, 37, 21), (1, 1, 1, 1), (2, 32, 16)])
def test_values_and_gradients(is_causal, normalize, shape, small_chunks):
    dv = 19 if shape[-1] == 21 else None
    compare(sample(shape, dv=dv), 5e-6, is_causal=is_causal, normalize=normalize, eps=0.25)


@CAUSAL
@NORMALIZE
def test_chunks_and_blocks_as_they_are(is_causal, normalize):
    compare(sample((1, 1, 130, 70), dv=5), 5e-6, is_causal=is_causal, normalize=normalize)


@CAUSAL
def test_the_gradient_of_each_output_alone(is_causal, small_chunks):
    for cotangents in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        compare(sample((1, 1, 35, 4)), 5e-6, cotangents, is_causal=is_causal)


@CAUSAL
@pytest.mark.parametrize("feature", [None, lambda x: F.softplus(torch.cat([x, -x], -1))])
def test_other_features_and_eps(is_causal, feature, small_chunks):
    inputs = sample((1, 2, 19, 3), features=None if feature is None else 6)
    if feature is None:
        inputs[:2] = [x.abs() * (x.abs() > 0.5) for x in inputs[:2]]
    compare(inputs, 5e-6, feature=feature, is_causal=is_causal, eps=0.25)


@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (50, 1), (20, 70)])
def test_other_numbers_of_keys_than_of_queries(queries, keys, small_chunks):
    compare(sample((1, 2, queries, 5), keys=keys), 5e-6)


@CAUSAL
@NORMALIZE
@pytest.mark.parametrize(("dtype", "tol"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(is_causal, normalize, dtype, tol, small_chunks):
    compare(sample((1, 2, 37, 8), dtype=dtype), tol, is_causal=is_causal, normalize=normalize)


@CAUSAL
def test_sums_beyond_the_range_of_float16(is_causal, small_chunks):
    """Weights, and what they sum to, are float32."""
    q, k, v, *state = sample((1, 1, 40, 4), dtype=torch.float16)
    compare([q + 200, k + 200, v, *state], 1.5e-3, is_causal=is_causal)


@CAUSAL
def test_large_features_and_not_a_number(is_causal, small_chunks):
    q, k, v, *state = sample((1, 1, 40, 4))
    for size in (1e4, -30.0):
        compare([size * q.abs(), k, v, *state], 5e-6, is_causal=is_causal)
    q[0, 0, 20, 1] = torch.nan
    with use("triton"):
        out = linear_attention(q, k, v, is_causal=is_causal)
    assert out.isnan().any(-1).nonzero().tolist() == [[0, 0, 20]]


@CAUSAL
def test_other_layouts(is_causal, small_chunks):
    """Strided inputs and states, and an expanded gradient."""
    q, k, v, s, z = sample((2, 21, 2, 4))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    s, z = s[:, :2].mT, z[:, :2]
    compare([q, k, v, s, z], 5e-6, is_causal=is_causal)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.double().detach().requires_grad_() for x in leaves]
    with use("triton"):
        linear_attention(*leaves, is_causal=is_causal).sum().backward()
    dense(*exact, (0 * s.double(), 0 * z.double()), is_causal=is_causal)[0].sum().backward()
    for a, b in zip(leaves, exact, strict=True):
        assert (a.grad - b.grad).abs().max() < 5e-6 * max(1.0, b.grad.abs().max())


@CAUSAL
def test_only_wanted_gradients_are_made(is_causal, small_chunks):
    inputs = sample((1, 1, 20, 4))
    for wanted in range(5):
        leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
        exact = [x.detach().double().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
        with use("triton"):
            out = linear_attention(*leaves[:3], initial_state=tuple(leaves[3:]), is_causal=is_causal)
        out.square().sum().backward()
        dense(*exact[:3], exact[3:], is_causal=is_causal)[0].square().sum().backward()
        assert [x.grad is not None for x in leaves] == [i == wanted for i in range(5)]
        a, b = leaves[wanted].grad, exact[wanted].grad
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_decoding_token_by_token_is_the_parallel_form(small_chunks):
    q, k, v, *_ = sample((1, 1, 18, 4))
    with use("triton"):
        whole, end = linear_attention(q, k, v, is_causal=True, return_state=True)
        state, outs = None, []
        for i in range(18):
            one = (x[..., i : i + 1, :] for x in (q, k, v))
            out, state = linear_attention(*one, is_causal=True, initial_state=state, return_state=True)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, -2), whole)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b)


@CAUSAL
def test_second_derivatives_are_refused(is_causal):
    q, k, v, *_ = (x.requires_grad_() for x in sample((1, 1, 4, 4)))
    with use("triton"):
        loss = linear_attention(q, k, v, is_causal=is_causal).sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, q, create_graph=True)


def test_what_it_cannot_take_goes_to_the_reference_with_a_warning():
    q = torch.randn(1, 1, 8, 4, device=DEVICE)
    with use("triton"):
        with pytest.warns(KernelWarning, match="no float64"):
            linear_attention(q.double(), q.double(), q.double())
        with pytest.warns(KernelWarning, match="nothing to do"):
            linear_attention(q[..., :0, :], q[..., :0, :], q[..., :0, :])
