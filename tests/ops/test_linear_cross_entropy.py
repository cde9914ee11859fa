"""Linear cross-entropy: every implementation against the whole matrix of logits in float64."""

import itertools
import warnings

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import KernelWarning, linear_cross_entropy, use
from logitkit.ops.linear_loss import cpu

BOTH = pytest.mark.parametrize("implementation", ["cpu", "reference"])


def sample(n=50, d=20, classes=2503, dtype=torch.float32, size=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = size * torch.randn(n, d, generator=g)
    w = torch.randn(classes, d, generator=g)
    b = torch.randn(classes, generator=g)
    y = torch.randint(classes, (n,), generator=g)
    return x.to(dtype), w.to(dtype), b.to(dtype), y


def oracle(
    x, w, y, b=None, class_weight=None, token_weight=None, smoothing=0.0, softcap=None, z=0.0, ignore=-100
):
    """(losses per token, z-losses per token, lse, divisor) by torch's own functions."""
    logits = F.linear(x, w, b)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    lse = logits.logsumexp(-1)
    plain = F.cross_entropy(
        logits, y, weight=class_weight, label_smoothing=smoothing, ignore_index=ignore, reduction="none"
    )
    count = (y != ignore).to(x) * (1 if token_weight is None else token_weight)
    safe = y.where(y != ignore, 0)
    share = count if class_weight is None else count * class_weight[safe]
    return count * (plain + z * lse**2), count * z * lse**2, lse, share.sum()


def leaves(*tensors, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def check(got, expected, tolerance):
    assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max()


def both(implementation, arguments, reduction, upstream=None, tolerance=1e-5, returned=False, **options):
    """Value and gradients of the op and of the oracle agree."""
    x, w, b, y = arguments
    mine, theirs = leaves(x, w, b), leaves(x, w, b, dtype=torch.float64)
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    ours_options = {
        "class_weight": options.get("class_weight"), "token_weight": options.get("token_weight"),
        "label_smoothing": options.get("smoothing", 0.0), "softcap": options.get("softcap"),
        "z_loss": options.get("z", 0.0),
    }  # fmt: skip
    with use(implementation):
        loss = linear_cross_entropy(
            mine[0], mine[1], y, mine[2], **ours_options, reduction=reduction, return_lse=returned
        )
    each, _, lse, divisor = oracle(theirs[0], theirs[1], y, theirs[2], **double)
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / divisor}[reduction]
    if returned:
        loss, mine_lse = loss
        lse = lse.where(y != -100, 0.0)
        check(mine_lse.detach(), lse.detach(), 1e-6)
        (loss.sum() + (mine_lse * upstream).sum()).backward()
        (expected.sum() + (lse * upstream).sum()).backward()
    elif upstream is None:
        loss.backward()
        expected.backward()
    else:
        (loss * upstream).sum().backward()
        (expected * upstream).sum().backward()
    assert loss.dtype == torch.float32
    check(loss.detach(), expected.detach(), 1e-6)
    for a, e in zip(mine, theirs, strict=True):
        check(a.grad, e.grad, tolerance)


OPTIONS = {
    "plain": {},
    "smoothing": {"smoothing": 0.1},
    "softcap": {"softcap": 5.0},
    "z-loss": {"z": 1e-2},
    "class weights": {"class_weight": torch.linspace(0.1, 2.0, 2503)},
    "token weights": {"token_weight": torch.linspace(0.0, 3.0, 50)},
    "all": {
        "smoothing": 0.2, "softcap": 8.0, "z": 1e-3, "class_weight": torch.linspace(0.1, 2.0, 2503),
        "token_weight": torch.linspace(0.0, 3.0, 50),
    },
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_value_and_gradients_are_those_of_the_full_logits(implementation, reduction, ignored, option):
    x, w, b, y = sample()
    if ignored:
        y[::3] = -100
    upstream = torch.randn(50, generator=torch.Generator().manual_seed(1)) if reduction == "none" else None
    both(implementation, (x, w, b, y), reduction, upstream, **OPTIONS[option])


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_flow_through_the_returned_log_sum_exp(implementation, reduction):
    x, w, b, y = sample()
    y[5] = -100
    upstream = torch.randn(50, generator=torch.Generator().manual_seed(1))
    both(implementation, (x, w, b, y), reduction, upstream, returned=True, **OPTIONS["all"])


@pytest.mark.parametrize(("n", "classes"), [*itertools.product([1, 17, 600], [2, 3, 257, 4097])])
def test_odd_shapes(n, classes):
    both("cpu", sample(n, 7, classes), "mean", z=1e-2)
    both("cpu", sample(n, 7, classes), "none", torch.ones(n))


@pytest.fixture
def thin(monkeypatch):
    """Tiles of 16 rows in one pass, and of few rows and columns in two."""
    monkeypatch.setattr(cpu, "TILE", 16 * 2503 * 4)
    monkeypatch.setattr(cpu, "MOST", 16 * 2503 * 4)
    monkeypatch.setattr(cpu, "FEW", 16)
    monkeypatch.setattr(cpu, "FORWARD_ROWS", 24)
    monkeypatch.setattr(cpu, "FORWARD_COLUMNS", 700)
    monkeypatch.setattr(cpu, "BACKWARD_ROWS", 64)
    monkeypatch.setattr(cpu, "BACKWARD_BYTES", 64 * 512 * 4)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_tiles_add_up(reduction):
    x, w, b, y = sample(n=150)
    y[::4] = -100
    weights = OPTIONS["all"] | {"token_weight": torch.rand(150)}
    both("cpu", (x, w, b, y), reduction, torch.rand(150) if reduction == "none" else None, **weights)
    both("cpu", sample(n=150), reduction, torch.rand(150) if reduction == "none" else None)


def test_thin_tiles_make_the_logits_twice(monkeypatch):
    monkeypatch.setattr(cpu, "TILE", 2503 * 4)
    monkeypatch.setattr(cpu, "MOST", 2503 * 4)
    monkeypatch.setattr(cpu._Total, "apply", lambda *a: pytest.fail("one pass over thin tiles"))
    both("cpu", sample(), "mean")


@BOTH
@pytest.mark.parametrize("softcap", [None, 2e4])
def test_extreme_logits_keep_value_and_gradients(implementation, softcap):
    x = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [1e4, 1.0], [0.0, 0.0]])
    w = torch.cat([torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]), torch.zeros(3000, 2)])
    y = torch.tensor([0, 0, 1, 2])
    # float32 numbers near 1e4 lie 1e-3 apart, and capping rounds to them.
    tolerance = 1e-5 if softcap is None else 1e-3
    both(implementation, (x, w, torch.zeros(3003), y), "mean", tolerance=tolerance, softcap=softcap)


@BOTH
def test_a_confident_row_keeps_the_digits_of_its_loss(implementation):
    w = torch.cat([torch.tensor([[30.0]]), torch.zeros(3000, 1)]).requires_grad_()
    x = torch.ones(2, 1)
    with use(implementation):
        loss = linear_cross_entropy(x, w, torch.tensor([0, 0]))
    loss.backward()
    expected = torch.log1p(3000 * torch.tensor(-30.0, dtype=torch.float64).exp())
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert float(w.grad[0]) == pytest.approx(-float(expected), rel=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2.0**-6), (torch.float16, 2.0**-9)])
@pytest.mark.parametrize("options", [{}, {"accum_dtype": torch.float32}, {"reduction": "none"}])
@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_half_precision_rounds_as_the_plain_form_does(implementation, dtype, bound, options):
    x, w, b, y = sample(300, 64, 5003, dtype, size=0.2)
    mine, theirs = leaves(x, w, b), leaves(x, w, b, dtype=torch.float64)
    with use(implementation):
        loss = linear_cross_entropy(mine[0], mine[1], y, mine[2], **options)
        loss = loss.mean()
        loss.backward()
    each, *_ = oracle(theirs[0], theirs[1], y, theirs[2])
    each.mean().backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(each.mean().detach()), rel=bound / 4)
    for a, e in zip(mine, theirs, strict=True):
        assert a.grad.dtype == dtype
        assert (a.grad.double() - e.grad).norm() <= bound * e.grad.norm()


def test_float16_gradients_survive_until_a_loss_scale_lifts_them():
    x, w, _, y = sample(300, 16, 5003, torch.float16, size=0.2)
    a, c = leaves(x, w)
    (linear_cross_entropy(a, c, y) * 65536.0).backward()
    p, q = leaves(x, w, dtype=torch.float64)
    (F.cross_entropy(p @ q.T, y) * 65536.0).backward()
    assert (c.grad.double() - q.grad).norm() < 2e-3 * q.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_of_bfloat16_stay_within_the_stated_error(dtype, monkeypatch):
    monkeypatch.setattr(cpu, "TILE", 64 * 2503 * dtype.itemsize)
    monkeypatch.setattr(cpu, "MOST", 64 * 2503 * dtype.itemsize)
    x, w, _, y = sample(1024, 16, 2503, dtype, size=0.2)

    def error(**options):
        a, c = leaves(x, w)
        with use("cpu"):
            linear_cross_entropy(a, c, y, filter_eps=None, **options).backward()
        q, r = leaves(x, w, dtype=torch.float64)
        F.cross_entropy(q @ r.T, y).backward()
        return float((c.grad.double() - r.grad).norm() / r.grad.norm())

    if dtype == torch.bfloat16:
        assert error(accum_dtype=torch.float32) < 2.0**-8
        assert error() < 2.0**-8 * (16 / 2) ** 0.5
    else:
        assert error() < 1e-6


def test_double_precision_and_double_backward_run_in_plain_torch():
    x, w, b, y = sample(4, 3, 11, torch.float64)
    y[0] = -100

    def f(x, w, b):
        loss, z, lse = linear_cross_entropy(
            x, w, y, b, label_smoothing=0.1, softcap=4.0, z_loss=0.1, return_lse=True, return_z_loss=True
        )
        assert not z.requires_grad
        return loss, lse

    assert torch.autograd.gradcheck(f, leaves(x, w, b))
    assert torch.autograd.gradgradcheck(lambda *a: f(*a)[0], leaves(x, w, b))
    with use("cpu"), pytest.warns(KernelWarning, match="float64"):
        assert linear_cross_entropy(x, w, y).dtype == torch.float64


def test_the_kernel_refuses_a_double_backward():
    x, w, _, y = sample()
    x.requires_grad_()
    with use("cpu"):
        for reduction in ("mean", "none"):
            loss = linear_cross_entropy(x, w, y, reduction=reduction).sum()
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(loss, x, create_graph=True)


@BOTH
def test_shift_predicts_the_next_token(implementation):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(3, 8, 5, generator=g), torch.randn(400, 5, generator=g)
    y = torch.randint(400, (3, 8), generator=g)
    weights = torch.rand(3, 8, generator=g)
    logits = (x @ w.T).double()[:, :-1]
    each = F.cross_entropy(logits.transpose(1, 2), y[:, 1:], reduction="none")
    with use(implementation):
        assert linear_cross_entropy(x, w, y, shift=True) == pytest.approx(float(each.mean()), rel=1e-6)
        none, lse = linear_cross_entropy(
            x, w, y, shift=True, token_weight=weights, reduction="none", return_lse=True
        )
    check(none, each * weights[:, 1:], 1e-6)
    check(lse, logits.logsumexp(-1), 1e-6)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_z_loss_comes_apart(implementation, reduction):
    x, w, b, y = sample()
    y[3] = -100
    with use(implementation):
        loss, z = linear_cross_entropy(x, w, y, b, z_loss=0.1, return_z_loss=True, reduction=reduction)
        alone = linear_cross_entropy(x, w, y, b, reduction=reduction)
    _, expected, _, divisor = oracle(x.double(), w.double(), y, b.double(), z=0.1)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / divisor}[reduction]
    check(z, expected, 1e-6)
    check(loss - z, alone.double(), 1e-5)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_but_ignored_tokens_is_zero(implementation, reduction):
    x, w, b, y = sample()
    mine = leaves(x, w, b)
    with use(implementation):
        loss = linear_cross_entropy(mine[0], mine[1], torch.full_like(y, -100), mine[2], reduction=reduction)
        loss.sum().backward()
    assert (loss == 0).all()
    assert all((m.grad == 0).all() for m in mine)


@BOTH
def test_token_weights_get_their_gradient(implementation):
    x, w, b, y = sample()
    (weights,) = leaves(torch.linspace(0.5, 1.5, 50))
    (double,) = leaves(weights, dtype=torch.float64)
    with use(implementation):
        linear_cross_entropy(x, w, y, b, token_weight=weights).backward()
    each, _, _, divisor = oracle(x.double(), w.double(), y, b.double(), token_weight=double)
    (each.sum() / divisor).backward()
    check(weights.grad, double.grad, 1e-5)


def test_a_second_backward_and_an_upstream_factor_are_exact():
    x, w, b, y = sample()
    mine = leaves(x, w, b)
    with use("cpu"):
        loss = 3.0 * linear_cross_entropy(mine[0], mine[1], y, mine[2])
        loss.backward(retain_graph=True)
        first = [m.grad.clone() for m in mine]
        loss.backward()
    theirs = leaves(x, w, b, dtype=torch.float64)
    (3 * oracle(theirs[0], theirs[1], y, theirs[2])[0].mean()).backward()
    for m, f, t in zip(mine, first, theirs, strict=True):
        check(f, t.grad, 1e-5)
        check(m.grad, 2 * t.grad, 1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_wanted_gradients_are_made(reduction):
    for wanted in itertools.product([False, True], repeat=3):
        x, w, b, y = sample()
        for t, need in zip((x, w, b), wanted, strict=True):
            t.requires_grad_(need)
        with use("cpu"):
            loss = linear_cross_entropy(x, w, y, b, reduction=reduction).sum()
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            loss.backward()
        assert [t.grad is not None for t in (x, w, b)] == list(wanted)


@BOTH
def test_layouts_and_batch_shapes(implementation):
    x, w, b, y = sample(48)
    with use(implementation):
        expected = linear_cross_entropy(x, w, y, b)
        strided = torch.stack([x, x], 2)[:, :, 0]
        assert linear_cross_entropy(strided, w.T.contiguous().T, y, b) == pytest.approx(
            float(expected), rel=1e-6
        )
        cube = linear_cross_entropy(x.view(4, 12, 20), w, y.view(4, 12), b, reduction="none")
        assert cube.shape == (4, 12)
        assert float(cube.mean()) == pytest.approx(float(expected), rel=1e-6)
        assert linear_cross_entropy(x[0], w, y[0], b, reduction="none").shape == ()


def test_autocast_multiplies_in_its_dtype():
    x, w, b, y = sample(64, 32, 3001, size=0.2)
    mine, theirs = leaves(x, w, b), leaves(x, w, b)
    with torch.autocast("cpu", torch.bfloat16):
        with use("cpu"):
            loss = linear_cross_entropy(mine[0], mine[1], y, mine[2])
        expected = F.cross_entropy(F.linear(theirs[0], theirs[1], theirs[2]).float(), y)
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    for a, e in zip(mine, theirs, strict=True):
        assert a.grad.dtype == torch.float32
        assert (a.grad - e.grad).norm() < 0.02 * e.grad.norm()


def zipf(dtype=torch.float32, n=256, d=32, classes=8192):
    """Logits like a trained model's: a few words take nearly all of the probability."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    w = torch.randn(classes, d, generator=g) * 0.5
    x[:, 0], w[:, 0] = 4.0, -4.0 * torch.log2(1.0 + torch.arange(classes)) / 2
    y = torch.distributions.Categorical(logits=x @ w.T).sample()
    return x.to(dtype), w.to(dtype), y


def gradients(x, w, y, **options):
    a, c = leaves(x, w)
    with use("cpu"):
        linear_cross_entropy(a, c, y, **options).backward()
    return a.grad, c.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_default_filter_stays_within_one_rounding(dtype, reduction, monkeypatch):
    x, w, y = zipf(dtype)
    left = []
    active = cpu._Tiles._active
    monkeypatch.setattr(cpu._Tiles, "_active", lambda s, p: left.append(active(s, p)) or left[-1])

    def run(filter_eps):
        a, c = leaves(x, w)
        with use("cpu"):
            linear_cross_entropy(a, c, y, filter_eps=filter_eps, reduction=reduction).mean().backward()
        return a.grad, c.grad

    auto, all_ = run("auto"), run(None)
    kept = [8192 if columns is None else len(columns) for columns in left]
    assert min(kept) < 8192 / 2
    p = torch.softmax((x.double() @ w.double().T), 1)
    slope = (1 - p.gather(1, y[:, None])) / len(y)
    unit = torch.finfo(dtype).eps / 2
    products = (p / len(y)) @ w.double().abs() + slope * w.double().abs()[y]
    bound = slope * unit * w.double().abs().amax(0) + 32 * unit * products
    assert ((auto[0].double() - all_[0].double()).abs() <= bound).all()
    assert torch.equal(auto[1], all_[1])


def test_a_filter_at_a_number_drops_small_entries_from_both_gradients():
    x, w, y = zipf()
    eps = 2.0**-12
    got, full = gradients(x, w, y, filter_eps=eps), gradients(x, w, y, filter_eps=None)
    # Entries are relative to all that is not the label's.
    p = torch.softmax((x.double() @ w.double().T).scatter(1, y[:, None], -torch.inf), 1)
    dropped = p.amax(0) < eps
    dropped[y] = False
    assert dropped.float().mean() > 0.5
    assert (got[1][dropped] == 0).all()
    check(got[1][~dropped], full[1][~dropped].double(), 1e-6)
    mass = p[:, dropped].sum(1, keepdim=True) / len(y)
    assert ((got[0] - full[0]).abs() <= mass * w.abs().max() + 1e-8).all()


def test_results_do_not_depend_on_the_number_of_threads():
    x, w, b, y = sample(300, 16, 5003)

    def run():
        mine = leaves(x, w, b)
        with use("cpu"):
            each = linear_cross_entropy(mine[0], mine[1], y, mine[2], z_loss=0.1, reduction="none")
            each.sum().backward()
        return [each.detach(), *(m.grad for m in mine)]

    many = run()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = run()
    finally:
        torch.set_num_threads(threads)
    # The kernels' passes agree to the bit; products are the library's.
    for a, c in zip(many, one, strict=True):
        check(a, c.double(), 2e-6)


def test_extra_memory_does_not_grow_with_the_vocabulary():
    for classes, item in itertools.product([1000, 32_768, 131_072, 1_000_000], [2, 4]):
        tiles = cpu._Tiles.__new__(cpu._Tiles)
        tiles.classes, tiles.itemsize, tiles.count = classes, item, 10**6
        if tiles.whole_rows >= cpu.FEW:
            assert tiles.whole_rows * classes * item <= 56 * 2**20
        else:
            assert classes * item * cpu.FEW > 32 * 2**20


def test_compiled_code_calls_it():
    x, w, _, y = sample()
    (x,) = leaves(x)
    compiled = torch.compile(lambda x: linear_cross_entropy(x * 2, w, y), backend="eager")
    loss = compiled(x)
    loss.backward()
    (double,) = leaves(x, dtype=torch.float64)
    expected = F.cross_entropy(2 * double @ w.double().T, y)
    expected.backward()
    check(loss.detach(), expected.detach(), 1e-6)
    check(x.grad, double.grad, 1e-5)


@BOTH
def test_nan_is_passed_on(implementation):
    x, w, b, y = sample()
    x[1, 1] = torch.nan
    with use(implementation):
        assert linear_cross_entropy(x, w, y, b).isnan()
        assert linear_cross_entropy(x, w, y, b, reduction="none").isnan().nonzero().tolist() == [[1]]


X, W, B, Y = sample(6, 4, 9)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[:0], W, Y[:0]), {}, "empty batch"),
        ((X, W[:, :3], Y), {}, "to match weight"),
        ((X, W[:1], Y), {}, "at least 2 classes"),
        ((X, W, Y[:5]), {}, "target must have shape"),
        ((X, W, Y + 9), {}, "expected labels in"),
        ((X, W, Y.float()), {}, "integer class labels"),
        ((X, W, Y, B[:3]), {}, "bias must have shape"),
        ((X, W.double(), Y), {}, "share one floating-point dtype"),
        ((X.long(), W, Y), {}, "share one floating-point dtype"),
        ((X, W, Y), {"label_smoothing": 1.5}, "label_smoothing"),
        ((X, W, Y), {"softcap": 0.0}, "softcap"),
        ((X, W, Y), {"reduction": "average"}, "reduction"),
        ((X, W, Y), {"filter_eps": "high"}, "filter_eps"),
        ((X, W, Y), {"accum_dtype": torch.float16}, "accum_dtype"),
        ((X, W, Y), {"class_weight": torch.ones(8)}, "class_weight"),
        ((X, W, Y), {"class_weight": torch.ones(9, requires_grad=True)}, "needs one"),
        ((X, W, Y), {"token_weight": torch.ones(5)}, "token_weight"),
        ((X[:1], W, Y[:1]), {"shift": True}, "shift needs"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        linear_cross_entropy(*arguments, **options)
