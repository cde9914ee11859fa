"""Every weight and implementation of attention against loops in float64 that know nothing of blocks."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import KernelWarning, attention, use
from logitkit.ops.attention import Elementwise, Normalized, Power, Sigmoid, Softmax, Softplus, cpu

BOTH = pytest.mark.parametrize("implementation", ["reference", "cpu"])


@dataclass(frozen=True)
class Relu(Elementwise):
    """A user's weight of the score alone; not 0 at minus infinity before it is hidden."""

    def weigh(self, scores):
        return (scores + 0.5).relu() + 0.1

    def slope(self, scores):
        return (scores > -0.5).to(scores.dtype)


@dataclass(frozen=True)
class Tempered(Normalized):
    """A user's normalised weight: exp(s / 2)."""

    def weigh(self, scores, peak):
        return torch.exp((scores - peak) / 2)

    def slope(self, scores, peak):
        return torch.exp((scores - peak) / 2) / 2


WEIGHTS = {
    "softmax": Softmax(),
    "sigmoid": Sigmoid(),
    "sigmoid, bias": Sigmoid(0.3),
    "softplus": Softplus(),
    "softplus^3": Softplus(3, by_length=False),
    "softplus^1.5": Softplus(1.5),
    "power": Power(),
    "power^6": Power(6, eps=0.0),
    "relu": Relu(),
    "tempered": Tempered(),
}
EACH = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())


def row_weights(weight, s, n_keys):
    """The weights of one row of visible scores, as the formulas are written."""
    if isinstance(weight, Softmax):
        w = (s - s.detach().max()).exp()
        return w / w.sum()
    if isinstance(weight, Tempered):
        w = (0.5 * s).exp()
        return w / w.sum()
    if isinstance(weight, Sigmoid):
        return 1 / (1 + (-(s + (-math.log(n_keys) if weight.bias is None else weight.bias))).exp())
    if isinstance(weight, Softplus):
        w = torch.logaddexp(s, torch.zeros_like(s)) ** weight.power
        return w / w.sum()
    if isinstance(weight, Power):
        w = s**weight.power
        return w / (w.sum() + weight.eps)
    return (s + 0.5).relu() + 0.1


def brute(q, k, v, weight, mask=None, causal=None, scale=None):
    """Loops over batch, heads and queries, in float64."""
    *batch, heads, n, d = q.shape
    keys = k.shape[-2]
    group = heads // k.shape[-3]
    scale = d**-0.5 if scale is None else scale
    mask = None if mask is None else mask.expand(*batch, heads, n, keys)
    out = torch.zeros(*batch, heads, n, v.shape[-1], dtype=torch.float64)
    for *b, h, i in itertools.product(*map(range, (*batch, heads, n))):
        b = tuple(b)
        see = [j for j in range(keys) if causal is None or j <= i + causal]
        if mask is not None:
            row = mask[(*b, h, i)]
            see = [j for j in see if (row[j] if row.dtype == torch.bool else row[j] > -torch.inf)]
        if not see:
            continue
        s = scale * k[(*b, h // group)][see] @ q[(*b, h, i)]
        if isinstance(weight, Softplus) and weight.by_length:
            s = s * math.log(d) * math.log(len(see))
        if mask is not None and mask.dtype != torch.bool:
            s = s + row[see]
        out[(*b, h, i)] = row_weights(weight, s, keys) @ v[(*b, h // group)][see]
    return out


def case(q_shape, kv_shape=None, dv=None, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    kv_shape = q_shape if kv_shape is None else kv_shape
    q = torch.randn(q_shape, generator=g, dtype=torch.float64)
    k = torch.randn(kv_shape, generator=g, dtype=torch.float64)
    v = torch.randn(*kv_shape[:-1], dv or kv_shape[-1], generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (q, k, v)]


def check(qkv, weight, implementation, tol, least=1e-3, **options):
    """Values and all three gradients, relative to the largest entry or to `least`."""
    mask, causal = options.get("attn_mask"), None
    if options.get("is_causal"):
        causal = options.get("causal_offset", 0)
    got_in = [x.detach().clone().requires_grad_() for x in qkv]
    exact_in = [x.detach().double().requires_grad_() for x in qkv]
    exact_mask = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    expected = brute(*exact_in, weight, exact_mask, causal, options.get("scale"))
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with use(implementation):
        got = attention(*got_in, weight=weight, enable_gqa=qkv[0].shape[-3] != qkv[1].shape[-3], **options)
        assert got.dtype == qkv[0].dtype
        got.backward(cotangent.to(got.dtype))
    expected.backward(cotangent)
    for name, a, b in zip(
        ("out", "dq", "dk", "dv"),
        (got, *(x.grad for x in got_in)),
        (expected, *(x.grad if x.grad is not None else torch.zeros_like(x) for x in exact_in)),
        strict=True,
    ):
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=least)
        assert error < tol, f"{name}: {error:.2e}"


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few scores, so that small problems have many of them and ragged ones."""
    monkeypatch.setattr(cpu, "BLOCK", 60)
    monkeypatch.setattr(cpu, "ROWS", 4)
    monkeypatch.setattr(cpu, "COLUMNS", 5)


@BOTH
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 13, 8), (2, 2, 9, 5)])
def test_values_and_gradients(implementation, weight, dtype, causal, shape, small_blocks):
    tol = 1e-11 if dtype == torch.float64 else 5e-6
    check(case(shape, dtype=dtype), weight, implementation, tol, is_causal=causal)


@BOTH
@EACH
@pytest.mark.parametrize("kind", ["full", "per batch", "padding", "additive", "additive -inf", "2-d"])
def test_masks(implementation, weight, kind, small_blocks):
    q, k, v = case((2, 3, 7, 4), (2, 3, 11, 4), dtype=torch.float32)
    g = torch.Generator().manual_seed(3)
    shape = {"per batch": (2, 1, 7, 11), "padding": (2, 1, 1, 11), "2-d": (7, 11)}.get(kind, (2, 3, 7, 11))
    mask = torch.rand(shape, generator=g) > 0.4
    if kind.startswith("additive"):
        bias = torch.randn(shape, generator=g)
        mask = bias.masked_fill(mask, -torch.inf) if kind.endswith("inf") else bias
    check((q, k, v), weight, implementation, 5e-6, attn_mask=mask)
    check((q, k, v), weight, implementation, 5e-6, attn_mask=mask, is_causal=True, causal_offset=2)


@BOTH
@EACH
@pytest.mark.parametrize(("n", "keys", "offset"), [(5, 12, 7), (12, 5, 0), (12, 5, -7), (1, 9, 8), (9, 1, 0)])
def test_causal_with_unequal_lengths(implementation, weight, n, keys, offset, small_blocks):
    qkv = case((1, 2, n, 4), (1, 2, keys, 4), dv=3, dtype=torch.float32)
    check(qkv, weight, implementation, 1e-5, least=1.0, is_causal=True, causal_offset=offset)


@BOTH
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power"])
def test_decoding_token_by_token_is_the_causal_form(implementation, weight):
    q, k, v = case((1, 2, 6, 4))
    if weight == "sigmoid":
        weight = Sigmoid(-math.log(6))
    with use(implementation):
        whole = attention(q, k, v, weight=weight, is_causal=True)
        for i in range(6):
            one = attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], weight=weight)
            torch.testing.assert_close(one[:, :, 0], whole[:, :, i])
        # A block of queries after a cache of keys.
        late = attention(q[:, :, 4:], k, v, weight=weight, is_causal=True, causal_offset=4)
    torch.testing.assert_close(late, whole[:, :, 4:])


@BOTH
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power"])
def test_grouped_queries(implementation, weight, small_blocks):
    qkv = case((2, 6, 5, 4), (2, 2, 9, 4), dtype=torch.float32)
    weight = {"softmax": Softmax(), "sigmoid": Sigmoid(), "softplus": Softplus(), "power": Power()}[weight]
    check(qkv, weight, implementation, 5e-6)
    check(qkv, weight, implementation, 5e-6, is_causal=True)


@BOTH
@EACH
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 7), (3, 1, 2, 1)])
def test_size_one(implementation, weight, shape):
    if isinstance(weight, Softplus) and shape[-1] == 1:
        weight = Softplus(weight.power, by_length=False)
    # One key has the weight 1 whatever its score, so gradients are differences of equal terms.
    check(case(shape, dtype=torch.float32), weight, implementation, 5e-6, least=1.0)


@BOTH
@EACH
def test_what_is_hidden_has_no_influence_and_no_gradient(implementation, weight, small_blocks):
    q, k, v = case((1, 2, 6, 4), (1, 2, 9, 4), dtype=torch.float32)
    seen = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) > 0.3
    seen[:, 4] = False
    seen[2] = False
    seen[3] = False
    seen[3, 8] = True
    results = []
    for fill in (0.0, 3e4):
        k[..., 4, :], v[..., 4, :] = fill, fill
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with use(implementation):
            out = attention(*leaves, weight=weight, attn_mask=seen)
            out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    out, dq, dk, dv = results[0]
    assert out[..., 2, :].eq(0).all()
    assert dq[..., 2, :].eq(0).all()
    assert dk[..., 4, :].eq(0).all()
    assert dv[..., 4, :].eq(0).all()


def test_queries_that_see_nothing_give_0_on_every_path():
    q, k, v = case((1, 2, 3, 4), dtype=torch.float32)
    for path in (None, "reference", "cpu"):
        for mask in (torch.zeros(3, 3, dtype=torch.bool), torch.full((3, 3), -torch.inf)):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            with use(path):
                out = attention(*leaves, attn_mask=mask)
            out.sum().backward()
            assert out.eq(0).all()
            assert all(x.grad.eq(0).all() for x in leaves)


@BOTH
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power", "softplus^3"])
@pytest.mark.parametrize("size", [1e-20, 1e4])
def test_extreme_scores(implementation, weight, size, small_blocks):
    """Scores of +-1e4, where exp overflows, and rows of only such scores on one side."""
    q, k, v = case((1, 1, 6, 2), (1, 1, 9, 2), dtype=torch.float32)
    q, k = q.sign(), k.sign()
    q[..., 0, :] = -1.0
    k[..., :5, :] = 1.0
    weight = {**WEIGHTS, "softplus": Softplus(by_length=False)}[weight]
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    # float64 underflows where float32 does, only later: its rows of -1e4 are what the scores' order says.
    with use(implementation):
        out = attention(*leaves, weight=weight, scale=size / 2)
        only_low = attention(q[..., :1, :], k[..., :5, :], v[..., :5, :], weight=weight, scale=size / 2)
    out.sum().backward()
    assert all(torch.isfinite(x).all() for x in (out, *(x.grad for x in leaves)))
    if isinstance(weight, Normalized) and not (isinstance(weight, Power) and size < 1):
        # Five equal scores of -1e4 are five equal weights, which softplus in floating point would lose.
        torch.testing.assert_close(only_low[0, 0, 0], v[0, 0, :5].mean(0), rtol=1e-6, atol=1e-6)
    if isinstance(weight, Power) and size < 1:
        assert out.eq(0).all()  # the sum of powers is nothing beside eps


@BOTH
def test_softplus_is_exact_on_both_sides_of_where_it_turns_into_exp(implementation):
    for low in (-15.0, -16.0, -30.0):
        q = torch.ones(1, 1, 1, 1)
        k = (low + torch.linspace(-2, 0, 6)).view(1, 1, 6, 1).float()
        v = torch.arange(6.0).view(1, 1, 6, 1)
        with use(implementation):
            got = attention(q, k, v, weight=Softplus(by_length=False), scale=1.0)
        exact = torch.log1p(k.double().exp()).flatten()
        assert float(got) == pytest.approx(float(exact / exact.sum() @ v.double().flatten()), rel=2e-6)


@BOTH
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(implementation, weight, dtype, tol, small_blocks):
    weight = {"softmax": Softmax(), "sigmoid": Sigmoid(), "softplus": Softplus(), "power": Power()}[weight]
    check(case((1, 2, 9, 8), dtype=dtype), weight, implementation, tol, is_causal=True)


@BOTH
@EACH
def test_non_contiguous_and_broadcast_inputs(implementation, weight, small_blocks):
    q, k, v = (x.transpose(1, 2) for x in case((2, 7, 3, 4), dtype=torch.float32))
    check((q, k, v), weight, implementation, 5e-6)
    shared = [x[:1].clone() for x in (k, v)]
    with use(implementation):
        got = attention(q, *shared, weight=weight)
        whole = attention(q, *(x.expand(2, -1, -1, -1) for x in shared), weight=weight)
    assert torch.equal(got, whole)


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power"])
@pytest.mark.parametrize("causal", [False, True])
def test_real_block_sizes(weight, causal):
    """More than one block of the real size in both directions, none of them whole."""
    q, k, v = case((1, 3, 700, 16), (1, 3, 1300, 16), dtype=torch.float32)
    grads = []
    for path, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        with use(path):
            out = attention(*leaves, weight=weight, is_causal=causal)
        out.square().sum().backward()
        grads.append([out.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() < 5e-6 * b.abs().max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_softmax_is_torchs(causal, masked):
    """By whichever path it takes: a small problem goes to torch, a large one to blocks."""
    for n in (20, 800):
        q, k, v = case((1, 4, n, 16), dtype=torch.float32)
        seen = torch.rand(n, n, generator=torch.Generator().manual_seed(0)) > 0.2
        seen.fill_diagonal_(True)
        torchs = seen & torch.ones(n, n).tril().bool() if causal else seen
        expected = F.scaled_dot_product_attention(
            q, k, v, attn_mask=torchs if masked else None, is_causal=causal and not masked
        )
        got = attention(q, k, v, attn_mask=seen if masked else None, is_causal=causal)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


def test_the_sigmoids_row_of_zero_scores():
    """n equal values of weight 1 / (n + 1) each."""
    for n in (2, 63, 600):
        q, k, v = torch.zeros(1, 1, n, 8), torch.randn(1, 1, n, 8), torch.ones(1, 1, n, 3)
        for path in ("reference", "cpu"):
            with use(path):
                got = attention(q, k, v, weight="sigmoid")
            torch.testing.assert_close(got, torch.full_like(got, n / (n + 1)))


@EACH
def test_gradcheck_of_the_reference_twice(weight):
    if isinstance(weight, Relu):
        weight = Sigmoid(0.0)  # relu's second derivative says nothing
    q, k, v = (x.requires_grad_() for x in case((1, 2, 4, 3)))
    bias = torch.zeros(4, 4, dtype=torch.float64)
    bias[1, 2] = -torch.inf
    bias.requires_grad_()

    def f(q, k, v, bias):
        with use("reference"):
            return attention(q, k, v, weight=weight, attn_mask=bias, is_causal=True)

    seen = torch.where(torch.isinf(bias), 0.0, bias.detach()).requires_grad_()
    assert torch.autograd.gradcheck(f, (q, k, v, seen))
    if not (isinstance(weight, Softplus) and weight.power != 1):
        assert torch.autograd.gradgradcheck(f, (q, k, v, seen))


def test_slopes_are_the_derivatives_of_the_weights():
    for weight in WEIGHTS.values():
        weight = weight.resolve(10)
        s = torch.linspace(-3, 3, 10, dtype=torch.float64).requires_grad_()
        peak = (torch.tensor([3.5], dtype=torch.float64),) if isinstance(weight, Normalized) else ()
        (slope,) = torch.autograd.grad(weight.weigh(s, *peak).sum(), s)
        torch.testing.assert_close(weight.slope(s.detach(), *peak), slope)


def test_gradients_only_where_they_are_wanted():
    q, k, v = case((1, 2, 600, 8), dtype=torch.float32)
    for wanted in range(3):
        leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate((q, k, v))]
        attention(*leaves, weight="sigmoid").sum().backward()
        assert [x.grad is not None for x in leaves] == [i == wanted for i in range(3)]


def test_the_kernel_refuses_second_derivatives():
    q, k, v = (x.requires_grad_() for x in case((1, 1, 4, 4), dtype=torch.float32))
    with use("cpu"):
        loss = attention(q, k, v, weight="sigmoid").sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, q, create_graph=True)


def test_a_mask_with_a_gradient_goes_to_the_reference_and_a_forced_kernel_warns():
    q, k, v = case((1, 1, 400, 4), dtype=torch.float32)
    bias = torch.zeros(400, 400, requires_grad=True)
    attention(q, k, v, weight="sigmoid", attn_mask=bias).sum().backward()
    assert bias.grad.abs().sum() > 0
    with use("cpu"), pytest.warns(KernelWarning, match="the mask needs a gradient"):
        attention(q, k, v, weight="sigmoid", attn_mask=bias)


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "power"])
def test_a_nan_is_not_hidden(weight):
    q, k, v = case((1, 1, 3, 4), dtype=torch.float32)
    q[0, 0, 1, 0] = torch.nan
    with use("cpu"):
        out = attention(q, k, v, weight=weight)
    assert out.isnan().all(-1).flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus"])
def test_autocast_gives_its_dtype(weight):
    q, k, v = case((1, 2, 300, 8), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v, weight=weight)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(q, k, v, weight=weight), rtol=3e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 0, 3, 4)])
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "softplus", "power"])
def test_empty(shape, weight):
    q, k, v = (x.requires_grad_() for x in case(shape, dtype=torch.float32))
    out = attention(q, k, v, weight=weight, is_causal=True)
    out.sum().backward()
    assert out.shape == shape
    assert q.grad.shape == shape
    q, k, v = (x.requires_grad_() for x in case((1, 2, 3, 4), (1, 2, 0, 4), dtype=torch.float32))
    out = attention(q, k, v, weight=weight)
    out.sum().backward()
    assert out.eq(0).all()
    assert q.grad.eq(0).all()


def test_the_result_does_not_depend_on_the_number_of_threads():
    q, k, v = case((1, 2, 700, 16), dtype=torch.float32)
    threads = torch.get_num_threads()
    for weight in ("softmax", "sigmoid"):
        many = attention(q, k, v, weight=weight)
        torch.set_num_threads(1)
        try:
            assert torch.equal(attention(q, k, v, weight=weight), many)
        finally:
            torch.set_num_threads(threads)


def test_compiled_code_gives_the_same():
    q, k, v = case((1, 2, 300, 8), dtype=torch.float32)
    compiled = torch.compile(lambda *x: 2 * attention(*x, weight="sigmoid"), backend="eager")
    torch.testing.assert_close(compiled(q, k, v), 2 * attention(q, k, v, weight="sigmoid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "sofmax"}, "weight must be one of"),
        ({"attn_mask": torch.ones(3, 4)}, "broadcast to"),
        ({"attn_mask": torch.ones(5, 5, dtype=torch.int64)}, "boolean or floating"),
        ({"key": torch.zeros(1, 2, 5, 3)}, "same dim"),
        ({"key": torch.zeros(1, 3, 5, 4), "value": torch.zeros(1, 3, 5, 4)}, "as many heads"),
        ({"value": torch.zeros(1, 2, 6, 4)}, "same heads and tokens"),
        ({"value": torch.zeros(1, 2, 5, 4).double()}, "share a floating dtype"),
        ({"query": torch.zeros(3, 4)}, r"heads, tokens, dim"),
        ({"query": torch.zeros(3, 2, 5, 4), "key": torch.zeros(2, 2, 5, 4)}, "leading dimensions"),
    ],
)
def test_bad_input(options, message):
    arguments = {name: torch.zeros(1, 2, 5, 4) for name in ("query", "key", "value")} | options
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


def test_bad_weights():
    with pytest.raises(ValueError, match="even power, got 3"):
        Power(3)
    with pytest.raises(ValueError, match="must be positive"):
        Softplus(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, 2, 3, 5])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_more_batch_dimensions_are_each_by_itself(causal, masked, kv_heads):
    q = torch.randn(2, 3, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, kv_heads, 9, 8, dtype=torch.float64) for _ in range(2))
    mask = None
    if masked is not None:
        mask = torch.rand((2, 3, 4, 7, 9)[5 - masked :]) < 0.6
        mask[..., 2, :] = False
    settings = {"is_causal": causal, "causal_offset": 2, "enable_gqa": True}
    found = attention(q, k, v, attn_mask=mask, **settings)
    wide = torch.ones(2, 3, 4, 7, 9, dtype=torch.bool) if mask is None else mask.expand(2, 3, 4, 7, 9)
    each = [
        attention(q[i, j], k[i, j], v[i, j], attn_mask=wide[i, j], **settings)
        for i, j in itertools.product(range(2), range(3))
    ]
    expected = torch.stack(each).view_as(found)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(y, q, g)[0] for y in (found, expected)))
