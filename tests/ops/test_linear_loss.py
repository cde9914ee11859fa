"""Comp-sum, LDR and distillation on a linear layer against their forms on the whole matrix of logits."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses.comp_sum import comp_sum
from logitkit.losses.ldr import ldr_kl
from logitkit.ops import (
    linear_comp_sum,
    linear_cross_entropy,
    linear_distillation,
    linear_ldr,
    linear_nkd,
    use,
)
from logitkit.ops.linear_loss import cpu

BOTH = pytest.mark.parametrize("implementation", ["cpu", "reference"])


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"], autouse=True)
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(cpu, "TILE", 16 * 1501 * 8)
        monkeypatch.setattr(cpu, "MOST", 16 * 1501 * 8)
        monkeypatch.setattr(cpu, "FEW", 16)
        monkeypatch.setattr(cpu, "FORWARD_ROWS", 24)
        monkeypatch.setattr(cpu, "FORWARD_COLUMNS", 700)
        monkeypatch.setattr(cpu, "BACKWARD_ROWS", 64)
        monkeypatch.setattr(cpu, "BACKWARD_BYTES", 64 * 512 * 4)


def sample(dtype=torch.float32, n=70, d=12, classes=1501):
    g = torch.Generator().manual_seed(0)
    x, t = (torch.randn(n, d, generator=g).to(dtype) for _ in range(2))
    w, tw = (torch.randn(classes, d, generator=g).to(dtype) for _ in range(2))
    b, tb = (torch.randn(classes, generator=g).to(dtype) for _ in range(2))
    y = torch.randint(classes, (n,), generator=g)
    y[::5] = -100
    return x, w, b, t, tw, tb, y


def weighted(each, y, reduction, class_weight=None):
    count = (y != -100).to(each) * (1 if class_weight is None else class_weight[y.clamp(min=0)])
    each = each * count
    return {"none": each, "sum": each.sum(), "mean": each.sum() / count.sum()}[reduction]


def agree(implementation, ours, full, tensors, upstream=None, tolerance=1e-5):
    mine = [t.detach().clone().requires_grad_() for t in tensors]
    theirs = [t.detach().double().requires_grad_() for t in tensors]
    with use(implementation):
        value = ours(*mine)
        (value if upstream is None else value * upstream).sum().backward()
    expected = full(*theirs)
    (expected if upstream is None else expected * upstream).sum().backward()
    assert (value - expected).abs().max() <= 2e-6 * expected.abs().max()
    for a, e in zip(mine, theirs, strict=True):
        assert (a.grad - e.grad).abs().max() <= tolerance * e.grad.abs().max()


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.7, 2.0])
def test_comp_sum(implementation, reduction, tau):
    x, w, b, *_, y = sample()
    v = torch.rand(1501)
    agree(
        implementation,
        lambda x, w, b: linear_comp_sum(0.3 * x, w, y, b, tau=tau, class_weight=v, reduction=reduction),
        lambda x, w, b: weighted(
            comp_sum(F.linear(0.3 * x, w, b), y.clamp(min=0), tau), y, reduction, v.double()
        ),
        (x, w, b),
        torch.randn(70) if reduction == "none" else None,
    )


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("lam", "margin"), [(1.0, 0.0), (0.2, 0.5), (10.0, 2.0)])
def test_ldr(implementation, reduction, lam, margin):
    x, w, b, *_, y = sample()
    agree(
        implementation,
        lambda x, w, b: linear_ldr(x, w, y, b, lam=lam, margin=margin, reduction=reduction),
        lambda x, w, b: weighted(ldr_kl(F.linear(x, w, b), y.clamp(min=0), lam, margin), y, reduction),
        (x, w, b),
        torch.randn(70) if reduction == "none" else None,
    )


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(implementation, reduction, temperature):
    x, w, b, t, tw, tb, _ = sample()
    counts = torch.rand(70)
    counts[3] = 0.0

    def full(x, w, b):
        teacher = F.log_softmax(F.linear(t.double(), tw.double(), tb.double()) / temperature, 1)
        student = F.log_softmax(F.linear(x, w, b) / temperature, 1)
        each = counts * temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return {"none": each, "sum": each.sum(), "mean": each.sum() / counts.double().sum()}[reduction]

    agree(
        implementation,
        lambda x, w, b: linear_distillation(
            x, w, t, tw, b, tb, temperature=temperature, token_weight=counts, reduction=reduction
        ),
        full,
        (x, w, b),
        torch.randn(70) if reduction == "none" else None,
    )


@BOTH
def test_distillation_from_oneself_is_zero_with_no_gradient(implementation):
    x, w, b, *_ = sample()
    x.requires_grad_()
    with use(implementation):
        loss = linear_distillation(x, w, x, w, b, b, temperature=2.0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert x.grad.abs().max() < 1e-7


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nkd(implementation, reduction):
    x, w, b, t, tw, tb, y = sample()
    safe = y.clamp(min=0)[:, None]

    def full(x, w, b):
        z, s = F.linear(t.double(), tw.double(), tb.double()), F.linear(x, w, b)
        of_label = -torch.softmax(z, 1).gather(1, safe) * F.log_softmax(s, 1).gather(1, safe)
        others = torch.ones_like(z, dtype=torch.bool).scatter(1, safe, False)
        teacher = F.log_softmax(z[others].view(70, -1), 1)
        student = F.log_softmax(s[others].view(70, -1), 1)
        cross = -(teacher.exp() * student).sum(1) + (teacher.exp() * teacher).sum(1)
        return weighted(of_label[:, 0] + 1.5 * cross, y, reduction)

    agree(
        implementation,
        lambda x, w, b: linear_nkd(x, w, t, tw, y, b, tb, reduction=reduction),
        full,
        (x, w, b),
        torch.randn(70) if reduction == "none" else None,
    )


def test_members_that_are_cross_entropy():
    x, w, b, *_, y = sample()
    expected = float(linear_cross_entropy(x, w, y, b))
    assert float(linear_comp_sum(x, w, y, b)) == pytest.approx(expected, rel=1e-6)
    log_k = torch.log(torch.tensor(1501.0))
    assert float(linear_ldr(x, w, y, b) + log_k) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("student", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher", [torch.float32, torch.bfloat16, torch.float16])
def test_student_and_teacher_may_have_different_dtypes(student, teacher):
    x, w, _, t, tw, *_ = sample()
    loss = {}
    for name in ("cpu", "reference"):
        with use(name):
            loss[name] = linear_distillation(
                x.to(student), w.to(student), t.to(teacher), tw.to(teacher), temperature=3.0
            )
    assert loss["cpu"].dtype == torch.float32
    assert float(loss["cpu"]) == pytest.approx(float(loss["reference"]), rel=1e-4)


def test_gradcheck_of_the_reference():
    x, w, b, t, tw, tb, y = (v[:6] if v.ndim == 1 else v[:6, :3] for v in sample(torch.float64))
    leaves = [v.clone().requires_grad_() for v in (x, w, b)]
    y = torch.tensor([0, 5, 2, -100, 1, 3])
    assert torch.autograd.gradcheck(lambda x, w, b: linear_comp_sum(x, w, y, b, tau=1.5), leaves)
    assert torch.autograd.gradcheck(lambda x, w, b: linear_ldr(x, w, y, b, lam=2.0, margin=1.0), leaves)
    assert torch.autograd.gradcheck(
        lambda x, w, b: linear_distillation(x, w, t, tw, b, tb, temperature=2.0), leaves
    )
    assert torch.autograd.gradcheck(lambda x, w, b: linear_nkd(x, w, t, tw, y, b, tb), leaves)


def test_bad_input_is_named():
    x, w, b, t, tw, tb, y = sample()
    with pytest.raises(ValueError, match="tau must be at least 0"):
        linear_comp_sum(x, w, y, tau=-1.0)
    with pytest.raises(ValueError, match="lam must be positive"):
        linear_ldr(x, w, y, lam=0.0)
    with pytest.raises(ValueError, match="margin must be"):
        linear_ldr(x, w, y, margin=-1.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        linear_distillation(x, w, t, tw, temperature=0.0)
    with pytest.raises(ValueError, match="same batch and classes"):
        linear_distillation(x, w, t[:5], tw)
    with pytest.raises(ValueError, match="teacher_features must have shape"):
        linear_distillation(x, w, t[:, :5], tw)
    with pytest.raises(ValueError, match="token_weight"):
        linear_distillation(x, w, t, tw, b, tb, token_weight=torch.ones(3))
    with pytest.raises(ValueError, match="gamma"):
        linear_nkd(x, w, t, tw, y, gamma=-1.0)
