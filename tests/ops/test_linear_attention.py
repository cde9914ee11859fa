"""Linear attention against its recurrence, one token at a time in float64, and against its dense form."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import linear_attention, use
from logitkit.ops.linear_attention import cpu, reference

BOTH = pytest.mark.parametrize("implementation", ["reference", "cpu"])


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few tokens, so that small problems have several stretches of several chunks."""
    monkeypatch.setattr(cpu, "CHUNK", 4)
    monkeypatch.setattr(cpu, "BLOCK", 128)
    monkeypatch.setattr(reference, "CHUNK", 3)


def phi(x, feature):
    if feature == "elu+1":
        return torch.where(x > 0, x + 1, x.exp())
    return x if feature is None else feature(x)


def recurrence(q, k, v, *, feature="elu+1", is_causal=False, normalize=True, eps=0.0, initial_state=None):
    """The state updated key by key; (output, state)."""
    q, k = phi(q, feature), phi(k, feature)
    if initial_state is None:
        s = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
        z = q.new_zeros(*q.shape[:-2], q.shape[-1])
    else:
        s, z = initial_state
    outs = []

    def read(i):
        top = torch.einsum("...d,...de->...e", q[..., i, :], s)
        return top / ((q[..., i, :] * z).sum(-1, keepdim=True) + eps) if normalize else top

    for j in range(k.shape[-2]):
        s = s + k[..., j, :, None] * v[..., j, None, :]
        z = z + k[..., j, :]
        if is_causal:
            outs.append(read(j))
    if not is_causal:
        outs = [read(i) for i in range(q.shape[-2])]
    return torch.stack(outs, -2), (s, z)


def dense(q, k, v, is_causal):
    q, k = phi(q, "elu+1"), phi(k, "elu+1")
    weights = q @ k.transpose(-1, -2)
    weights = weights.tril() if is_causal else weights
    return weights / weights.sum(-1, keepdim=True) @ v


def case(shape, keys=None, dv=None, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    *lead, n, d = shape
    keys = n if keys is None else keys
    made = (
        torch.randn(*lead, n, d, generator=g),
        torch.randn(*lead, keys, d, generator=g),
        torch.randn(*lead, keys, dv or d, generator=g),
    )
    return [x.to(dtype) for x in made]


def check(qkv, implementation, tol, state=None, **options):
    """Output, final state and every gradient, with cotangents on all of them."""
    leaves = [x.detach().clone().requires_grad_() for x in (*qkv, *(state or ()))]
    exact = [x.detach().double().requires_grad_() for x in (*qkv, *(state or ()))]
    expected, end = recurrence(*exact[:3], initial_state=tuple(exact[3:]) or None, **options)
    g = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (expected, *end)]
    with use(implementation):
        got, got_end = linear_attention(
            *leaves[:3], initial_state=tuple(leaves[3:]) or None, return_state=True, **options
        )
        assert got.dtype == qkv[0].dtype
        torch.autograd.backward(
            [got, *got_end], [c.to(x.dtype) for c, x in zip(cotangents, (got, *got_end), strict=True)]
        )
    torch.autograd.backward([expected, *end], cotangents)
    pairs = [(got, expected), *zip(got_end, end, strict=True)]
    pairs += [(a.grad, b.grad) for a, b in zip(leaves, exact, strict=True)]
    for i, (a, b) in enumerate(pairs):
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)
        assert error < tol, f"{i}: {error:.2e}"


@BOTH
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("feature", ["elu+1", None, lambda x: F.softplus(torch.cat([x, -x], -1))])
@pytest.mark.parametrize("shape", [(2, 3, 13, 5), (1, 1, 1, 1), (1, 2, 16, 4), (3, 37, 2)])
def test_recurrence(implementation, is_causal, normalize, feature, shape, small_chunks):
    qkv = case(shape, dv=3)
    if feature is None:
        qkv[:2] = [x.abs() + 0.1 for x in qkv[:2]]
    check(qkv, implementation, 5e-6, feature=feature, is_causal=is_causal, normalize=normalize, eps=0.25)


@BOTH
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_initial_states_and_their_gradients(implementation, is_causal, normalize, small_chunks):
    g = torch.Generator().manual_seed(9)
    state = torch.randn(2, 2, 4, 6, generator=g), torch.rand(2, 2, 4, generator=g)
    check(case((2, 2, 11, 4), dv=6), implementation, 5e-6, state, is_causal=is_causal, normalize=normalize)


@BOTH
def test_more_keys_than_queries(implementation, small_chunks):
    check(case((2, 2, 5, 4), keys=17), implementation, 5e-6)


@BOTH
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_dense_form_at_real_sizes(implementation, is_causal):
    """Several stretches of whole chunks and a ragged end."""
    results = []
    for run, dtype in ((None, torch.float64), (implementation, torch.float32)):
        q, k, v = (x.to(dtype, copy=True).requires_grad_() for x in case((2, 9, 1500, 16)))
        with use(run):
            out = dense(q, k, v, is_causal) if run is None else linear_attention(q, k, v, is_causal=is_causal)
        (out * v.detach()).sum().backward()
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for exact, got in zip(*results, strict=True):
        assert (got - exact).abs().max() < 5e-6 * exact.abs().max()


@BOTH
def test_decoding_token_by_token_is_the_parallel_form(implementation, small_chunks):
    q, k, v = case((1, 2, 10, 4))
    with use(implementation):
        whole, end = linear_attention(q, k, v, is_causal=True, return_state=True)
        state, outs = None, []
        for i in range(10):
            one = (x[..., i : i + 1, :] for x in (q, k, v))
            out, state = linear_attention(*one, is_causal=True, initial_state=state, return_state=True)
            outs.append(out)
    torch.testing.assert_close(torch.cat(outs, -2), whole)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b)


@BOTH
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-12)]
)
@pytest.mark.filterwarnings("ignore:logitkit.ops.linear_attention cannot use")
def test_dtypes(implementation, dtype, tol, small_chunks):
    for is_causal in (False, True):
        check(case((1, 2, 9, 8), dtype=dtype), implementation, tol, is_causal=is_causal)


@BOTH
@pytest.mark.parametrize("is_causal", [False, True])
def test_non_contiguous_input(implementation, is_causal, small_chunks):
    q, k, v = (x.transpose(1, 2) for x in case((2, 7, 3, 4)))
    check((q, k, v), implementation, 5e-6, is_causal=is_causal)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    with use(implementation):
        out = linear_attention(*leaves, is_causal=is_causal)
    out.sum().backward()  # an expanded gradient
    assert all(torch.isfinite(x.grad).all() for x in leaves)


@BOTH
@pytest.mark.parametrize("is_causal", [False, True])
def test_large_and_small_features(implementation, is_causal):
    q, k, v = case((1, 1, 50, 4))
    for size in (1e4, -30.0):
        with use(implementation):
            out = linear_attention(size * q.abs(), k, v, is_causal=is_causal)
        expected, _ = recurrence(*(x.double() for x in (size * q.abs(), k, v)), is_causal=is_causal)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck_of_the_reference_twice(is_causal, small_chunks):
    qkv = [x.requires_grad_() for x in case((1, 2, 4, 2), dtype=torch.float64)]

    def f(*x):
        return linear_attention(*x, is_causal=is_causal)

    assert torch.autograd.gradcheck(f, qkv)
    assert torch.autograd.gradgradcheck(f, qkv)


def test_the_kernel_refuses_second_derivatives():
    q, k, v = (x.requires_grad_() for x in case((1, 1, 4, 4)))
    for is_causal in (False, True):
        loss = linear_attention(q, k, v, is_causal=is_causal).sum()
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(loss, q, create_graph=True)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty(shape, is_causal):
    q, k, v = (x.requires_grad_() for x in case(shape))
    out, (s, z) = linear_attention(q, k, v, is_causal=is_causal, return_state=True)
    out.sum().backward()
    assert out.shape == q.grad.shape == shape
    assert s.eq(0).all()
    assert z.eq(0).all()


def test_autocast_and_compiled_code():
    q, k, v = case((1, 2, 30, 8))
    plain = linear_attention(q, k, v, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_attention(q, k, v, is_causal=True)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain, rtol=3e-2, atol=2e-2)
    compiled = torch.compile(lambda *x: 2 * linear_attention(*x, is_causal=True), backend="eager")
    torch.testing.assert_close(compiled(q, k, v), 2 * plain)


def test_the_result_does_not_depend_on_the_number_of_threads():
    q, k, v = case((1, 2, 700, 16))
    threads = torch.get_num_threads()
    for is_causal in (False, True):
        many = linear_attention(q, k, v, is_causal=is_causal)
        torch.set_num_threads(1)
        try:
            assert torch.equal(linear_attention(q, k, v, is_causal=is_causal), many)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": "relu"}, "feature must be"),
        ({"query": torch.zeros(1, 2, 6, 4), "is_causal": True}, "same number of tokens"),
        ({"value": torch.zeros(1, 2, 6, 4)}, "key and value must have the same number"),
        ({"key": torch.zeros(1, 2, 5, 3)}, "same dim"),
        ({"query": torch.zeros(2, 5, 4)}, "same leading dimensions"),
        ({"query": torch.zeros(5, 4)}, "heads, tokens, dim"),
        ({"value": torch.zeros(1, 2, 5, 4).double()}, "share a floating dtype"),
        ({"initial_state": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4))}, "initial state must have shape"),
    ],
)
def test_bad_input(options, message):
    arguments = {name: torch.zeros(1, 2, 5, 4) for name in ("query", "key", "value")} | options
    with pytest.raises(ValueError, match=message):
        linear_attention(**arguments)
