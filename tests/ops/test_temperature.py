"""Both implementations of the objective's derivatives against autograd, and the answer against both."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import fit_temperature, use
from logitkit.ops.temperature import cpu, reference

BOTH = pytest.mark.parametrize("kernel", [cpu, reference], ids=["cpu", "reference"])


def sample(n=300, classes=7, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=g)
    return (3 * (torch.randn(n, classes, generator=g) + F.one_hot(y, classes))).to(dtype), y


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (257, 3), (300, 65), (5, 1000)])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 50.0])
def test_derivatives_are_those_of_the_loss(kernel, dtype, n, classes, beta):
    z, y = sample(n, classes, dtype)
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    value = F.cross_entropy(b * z.double(), y)
    expected = []
    for _ in range(3):
        (value,) = torch.autograd.grad(value, b, create_graph=True)
        expected.append(float(value.detach()))
    assert kernel.derivatives(z, y, beta) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@BOTH
def test_spread_is_the_standard_deviation_within_rows(kernel):
    z, _ = sample()
    assert kernel.spread(z) == pytest.approx(float(z.double().var(1, correction=0).mean().sqrt()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [300, 20_000])
def test_the_gradient_vanishes_at_the_answer_for_any_dtype_and_layout(dtype, n):
    z, y = sample(n, dtype=dtype)
    strided = torch.stack([z, z], dim=2)[:, :, 0]
    for implementation in ("cpu", "reference"):
        with use(implementation):
            log_t = torch.tensor(fit_temperature(strided, y), dtype=torch.float64).log().requires_grad_()
        F.cross_entropy(z.double() / log_t.exp(), y).backward()
        assert abs(log_t.grad) < 1e-12


def test_the_answer_does_not_depend_on_the_number_of_threads():
    z, y = sample(5000)
    many = fit_temperature(z, y)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert fit_temperature(z, y) == many
    finally:
        torch.set_num_threads(threads)


def test_logits_that_are_not_finite_are_refused():
    z, y = sample()
    z[3, 2] = torch.inf
    with pytest.raises(ValueError, match="got 1 that are not"):
        fit_temperature(z, y)
