"""The GPU kernels of linear losses, by Triton's interpreter on the CPU and on a GPU where there is one."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import KernelWarning, linear_comp_sum, linear_cross_entropy, linear_distillation, use

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(n=70, d=20, classes=1003, dtype=torch.float32, size=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w = size * torch.randn(n, d, generator=g), torch.randn(classes, d, generator=g)
    b, y = torch.randn(classes, generator=g), torch.randint(classes, (n,), generator=g)
    return x.to(DEVICE, dtype), w.to(DEVICE, dtype), b.to(DEVICE, dtype), y.to(DEVICE)


def run(implementation, arguments, function=linear_cross_entropy, dtype=None, upstream=True, **options):
    """Values and gradients of the loss."""
    *tensors, y = arguments
    x, w, b = leaves = [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]
    with use(implementation):
        found = function(x, w, y, b, **options)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum((f * torch.linspace(-1, 2, f.numel(), device=DEVICE).view(f.shape)).sum() for f in found)
    (loss if upstream else found[0].sum()).backward()
    return [f.detach() for f in found], [t.grad for t in leaves]


def close(found, expected, tolerance):
    for group, exact in zip(found, expected, strict=True):
        for a, e in zip(group, exact, strict=True):
            assert a.shape == e.shape
            assert (a.double() - e).abs().max() <= tolerance * e.abs().max()


def compare(arguments, tolerance=1e-5, **options):
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    exact = run("reference", arguments, dtype=torch.float64, **double)
    found = run("triton", arguments, **options)
    close(found, exact, tolerance)


OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "softcap and z-loss": {"softcap": 5.0, "z_loss": 1e-2},
    "small filter": {"filter_eps": 1e-7},
    "unfiltered": {"filter_eps": None},
    "all": {
        "label_smoothing": 0.2, "softcap": 8.0, "z_loss": 1e-3, "return_lse": True,
        "class_weight": torch.linspace(0.1, 2.0, 1003, device=DEVICE),
        "token_weight": torch.linspace(0.0, 3.0, 70, device=DEVICE),
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_value_and_gradients(option):
    x, w, b, y = sample()
    y[::3] = -100
    compare((x, w, b, y), **OPTIONS[option])


# The interpreter's products of bfloat16 are wrong in some versions of triton, so half precision is float16.
def test_float16_rounds_as_the_plain_form_does():
    x, w, b, y = sample(150, 70, 1003, torch.float16, size=0.2)
    values, exact = run("reference", (x, w, b, y), dtype=torch.float64, upstream=False)
    for options in ({}, {"filter_eps": 1e-6}):
        found, gradients = run("triton", (x, w, b, y), upstream=False, **options)
        assert found[0].dtype == torch.float32
        assert float(found[0]) == pytest.approx(float(values[0]), rel=1e-4)
        for a, e in zip(gradients, exact, strict=True):
            assert a.dtype == torch.float16
            assert (a.double() - e).norm() <= 2.0**-9 * e.norm()


@pytest.mark.parametrize(("n", "d", "classes"), [(1, 1, 2), (65, 33, 64), (3, 7, 4200), (130, 64, 129)])
def test_odd_shapes(n, d, classes):
    compare(sample(n, d, classes))


def test_many_blocks_of_columns_add_up(monkeypatch):
    from logitkit.ops.linear_loss import triton

    monkeypatch.setattr(triton, "BUFFER", 70 * 4 * 256)
    monkeypatch.setattr(triton, "PART", 128)
    compare(sample())
    compare(sample(), label_smoothing=0.1)


def test_layouts_and_extreme_logits():
    x, w, b, y = sample()
    strided = torch.stack([x, x], 2)[:, :, 0], w.T.contiguous().T, torch.stack([b, b], 1)[:, 0]
    close(run("triton", (*strided, y)), run("reference", (x, w, b, y), dtype=torch.float64), 1e-5)
    x = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [1e4, 1.0], [0.0, 0.0]], device=DEVICE)
    w = torch.cat([torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]), torch.zeros(300, 2)]).to(DEVICE)
    y = torch.tensor([0, 0, 1, 2], device=DEVICE)
    compare((x, w, torch.zeros(303, device=DEVICE), y))
    x[1, 1] = torch.nan
    with use("triton"):
        assert linear_cross_entropy(x, w, y, reduction="none").isnan().nonzero().tolist() == [[1]]


def test_a_confident_row_keeps_the_digits_of_its_loss():
    w = torch.cat([torch.tensor([[30.0]]), torch.zeros(300, 1)]).to(DEVICE).requires_grad_()
    with use("triton"):
        loss = linear_cross_entropy(
            torch.ones(2, 1, device=DEVICE), w, torch.zeros(2, dtype=torch.long, device=DEVICE)
        )
    loss.backward()
    expected = float(torch.log1p(300 * torch.tensor(-30.0, dtype=torch.float64).exp()))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(w.grad[0]) == pytest.approx(-expected, rel=1e-6)


def test_another_loss_of_the_family():
    comp = partial(linear_comp_sum, tau=1.5)
    exact = run("reference", sample(size=0.3), comp, dtype=torch.float64)
    close(run("triton", sample(size=0.3), comp), exact, 1e-5)


def sharp(n=130, d=8, classes=2048):
    """Logits in which only the first words have a probability."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g), torch.randn(classes, d, generator=g) * 0.1
    x[:, 0], w[:, 0] = 4.0, -0.02 * torch.arange(classes)
    y = torch.randint(64, (n,), generator=g)
    return x.to(DEVICE), w.to(DEVICE), torch.zeros(classes, device=DEVICE), y.to(DEVICE)


@pytest.fixture
def kept(monkeypatch):
    """The share of tiles that each product keeps."""
    from logitkit.ops.linear_loss import triton

    shares, multiply = [], triton._multiply

    def watch(a, b, out, add, keep, tile):
        shares.append(1.0 if keep is None else float(keep.float().mean()))
        multiply(a, b, out, add, keep, tile)

    monkeypatch.setattr(triton, "_multiply", watch)
    return shares


def test_the_default_filter_stays_within_one_rounding(kept):
    x, w, b, y = sharp()
    _, (auto, auto_w, _) = run("triton", (x, w, b, y), upstream=False)
    features, weight = kept
    assert features < 0.7
    assert weight == 1
    _, (full, full_w, _) = run("triton", (x, w, b, y), upstream=False, filter_eps=None)
    p = torch.softmax(x.double() @ w.double().T, 1)
    slope = (1 - p.gather(1, y[:, None])) / len(y)
    bound = slope * 2.0**-24 * w.double().abs().amax(0) + 32 * 2.0**-24 * (p / len(y)) @ w.double().abs()
    assert ((auto.double() - full.double()).abs() <= bound).all()
    assert torch.equal(auto_w, full_w)


def test_a_filter_at_a_number_leaves_tiles_out_of_both_gradients(kept):
    arguments = sharp()
    _, (few, few_w, _) = run("triton", arguments, upstream=False, filter_eps=2.0**-12)
    assert max(kept) < 0.5
    _, (full, full_w, _) = run("triton", arguments, upstream=False, filter_eps=None)
    assert (few_w[1024:] == 0).all()
    assert (few_w[:64] - full_w[:64]).abs().max() <= 1e-6 * full_w.abs().max()
    assert (few - full).abs().max() <= 2.0**-12 * 64 * full.abs().max()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_wanted_gradients_are_made(reduction):
    x, w, b, y = sample()
    for wanted in range(3):
        tensors = [t.clone().requires_grad_(i == wanted) for i, t in enumerate((x, w, b))]
        with use("triton"):
            linear_cross_entropy(*tensors[:2], y, tensors[2], reduction=reduction).sum().backward()
        assert [t.grad is not None for t in tensors] == [i == wanted for i in range(3)]


def test_a_double_backward_is_refused():
    x, w, _, y = sample()
    x.requires_grad_()
    with use("triton"):
        loss = linear_cross_entropy(x, w, y)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_nothing_but_ignored_tokens_is_zero():
    x, w, b, y = sample()
    values, gradients = run("triton", (x, w, b, torch.full_like(y, -100)))
    assert values[0] == 0
    assert all((g == 0).all() for g in gradients)


def test_what_it_cannot_take_goes_to_the_reference_with_a_warning():
    x, w, _, y = sample()
    with use("triton"):
        with pytest.warns(KernelWarning, match="no teacher"):
            linear_distillation(x, w, x, w)
        with pytest.warns(KernelWarning, match="float64"):
            found = linear_cross_entropy(x.double(), w.double(), y)
    assert float(found) == pytest.approx(float(F.cross_entropy(x.double() @ w.double().T, y)))
