"""All triplets against loops over plain triplets in float64."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import all_triplets, use
from logitkit.ops.contrastive import cpu

IMPLEMENTATIONS = pytest.mark.parametrize("name", ["cpu", "reference"])


def draw(n, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def draw_labels(n, classes, seed=1):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def length(v):
    """|v|, with gradient 0 at 0."""
    square = v.square().sum()
    return square.sqrt() if square > 0 else square * 0


def loop(z, labels, margin, normalize=True):
    z = F.normalize(z) if normalize else z
    n, terms = len(z), []
    for a in range(n):
        for p in range(n):
            for q in range(n):
                if p != a and labels[p] == labels[a] != labels[q]:
                    term = length(z[a] - z[p]) - length(z[a] - z[q]) + margin
                    if term > 0:
                        terms.append(term)
    return torch.stack(terms).mean() if terms else (0 * z).sum()


def dense(z, labels, margin):
    """The same with whole tensors, in float64: rows x positives x negatives."""
    z = F.normalize(z)
    d = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    total, count = 0.0, 0
    for i in range(len(z)):
        p = same[i].clone()
        p[i] = False
        terms = (d[i, p][:, None] - d[i, ~same[i]][None] + margin).clamp(min=0)
        total, count = total + terms.sum(), count + int((terms > 0).sum())
    return total / max(count, 1)


def both(x, oracle, tolerance=3e-6, **options):
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    value, expected = all_triplets(leaf, **options), oracle(exact)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    (found,), (wanted,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(
        found.double(), wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max()))
    )


@pytest.mark.parametrize(("name", "few"), [("cpu", 32), ("cpu", 0), ("reference", 32)])
@pytest.mark.parametrize("n", [1, 2, 3, 13])
@pytest.mark.parametrize("classes", [1, 2, 5, None])
@pytest.mark.parametrize("margin", [0.3, 0.0, -0.2, 3.0])
def test_values_and_gradients(name, few, n, classes, margin, monkeypatch):
    monkeypatch.setattr(cpu, "FEW", few)  # 0: positives are searched instead of compared one by one
    x, y = draw(n), torch.arange(n) if classes is None else draw_labels(n, classes)
    with use(name):
        both(x, lambda z: loop(z, y, margin), labels=y, margin=margin)


@IMPLEMENTATIONS
def test_embeddings_that_are_not_normalised(name):
    x, y = 3 * draw(12) + 1, draw_labels(12, 4)
    with use(name):
        both(
            x,
            lambda z: loop(z, y, 0.5, normalize=False),
            labels=y,
            margin=0.5,
            normalize=False,
            tolerance=1e-5,
        )


@pytest.mark.parametrize("classes", [2, 60])
def test_several_strips_and_many_positives(classes, monkeypatch):
    monkeypatch.setattr(cpu, "STRIP", 1)
    monkeypatch.setattr(cpu, "LEAST", 48)
    x, y = draw(202, 24), draw_labels(202, classes)
    both(x, lambda z: dense(z, y, 0.2), labels=y, margin=0.2, tolerance=2e-5)


@IMPLEMENTATIONS
def test_duplicates_have_distance_and_gradient_zero(name):
    x, y = draw(12), draw_labels(12, 3)
    x[3] = x[4] = x[7] = x[8]  # some with the same label, some not
    x[0] = 2 * x[1]
    with use(name):
        both(x, lambda z: loop(z, y, 0.2), labels=y, margin=0.2)


def test_embeddings_that_nearly_coincide():
    # Products lose these distances in float32: 2 - 2 cos is accurate to 1e-7, so the distance to 3e-4.
    x = torch.ones(1, 6) + 1e-4 * draw(12, 6)
    y = draw_labels(12, 3)
    both(x, lambda z: loop(z, y, 2e-5, normalize=False), labels=y, margin=2e-5, normalize=False)
    with use("reference"):
        both(x, lambda z: loop(z, y, 2e-5, normalize=False), labels=y, margin=2e-5, normalize=False)


@IMPLEMENTATIONS
def test_a_triplet_exactly_at_the_margin_does_not_count(name):
    # Distances 1 and 2 and margin 1 are exact.
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    with use(name):
        value = all_triplets(x, y, margin=1.0, normalize=False)
        value.backward()
    assert value == 0
    assert x.grad.abs().max() == 0


@IMPLEMENTATIONS
def test_numbers_of_pytorch_metric_learning(name):
    # version 2.9.0 on torch 2.13.0, float64
    i = torch.arange(24 * 6, dtype=torch.float64).reshape(24, 6)
    x, y = torch.sin(0.37 * i * i + 0.2 * i).float(), torch.arange(24) * 7 % 5
    with use(name):
        assert float(all_triplets(x, y)) == pytest.approx(0.3499226656195119, rel=1e-6)
        assert float(all_triplets(x, y, margin=0.4)) == pytest.approx(0.537578962820176, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_layouts(dtype):
    x, y = draw(30, 8).to(dtype), draw_labels(30, 6)
    strided = torch.stack([x.T, x.T], 2)[:, :, 0].T.detach().requires_grad_()
    value = all_triplets(strided, y, margin=0.3)
    exact = x.double().requires_grad_()
    expected = dense(exact, y, 0.3)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(expected.item(), rel=2e-6)
    (found,), (wanted,) = torch.autograd.grad(value, strided), torch.autograd.grad(expected, exact)
    error = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 1e-12)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=error * float(wanted.abs().max()))


def test_the_number_of_threads_does_not_matter():
    x, y = draw(300, 16).requires_grad_(), draw_labels(300, 6)
    value = all_triplets(x, y)
    (grad,) = torch.autograd.grad(value, x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = all_triplets(x, y)
        (alone_grad,) = torch.autograd.grad(alone, x)
    finally:
        torch.set_num_threads(threads)
    assert alone.item() == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(alone_grad, grad, rtol=0, atol=1e-4 * float(grad.abs().max()))


def test_nan_and_second_derivatives():
    x, y = draw(12).requires_grad_(), draw_labels(12, 3)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(all_triplets(x, y), x, create_graph=True)
    broken = draw(12)
    broken[4, 1] = torch.nan
    assert all_triplets(broken, y).isnan()


def test_a_margin_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="margin must be finite, got inf"):
        all_triplets(draw(4), draw_labels(4, 2), margin=float("inf"))
