"""Power attention in closed form, and models made of sums and products against those they stand in for."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitkit.attention import PowerAttention, power_attention, range_penalties, to_polynomial
from logitkit.models import Transformer
from logitkit.ops import Polynomial, PolynomialInverse, PolynomialRsqrt


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


def weights_of(q, k, **settings):
    n = k.shape[-2]
    return power_attention(q, k, torch.eye(n, dtype=q.dtype).expand(*k.shape[:-2], n, n), **settings)


@pytest.mark.parametrize("power", [2, 4, 6])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 10.0])
def test_relative_to_the_peak_is_the_direct_form(power, eps):
    q, k, _ = inputs(6)
    allowed = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    allowed[2] = False
    raised = (q @ k.mT / math.sqrt(8)) ** power * allowed
    total = raised.sum(-1, keepdim=True)
    expected = torch.where(total + eps > 0, raised / (total + eps), 0)
    torch.testing.assert_close(
        weights_of(q, k, attn_mask=allowed, power=power, eps=eps), expected, rtol=1e-12, atol=1e-14
    )
    counts = allowed.sum(-1, keepdim=True).clamp(min=1)
    mean = raised / counts / (total / counts + eps) if eps else expected
    found = weights_of(q, k, attn_mask=allowed, power=power, eps=eps, mean_form=True)
    torch.testing.assert_close(found, mean, rtol=1e-11, atol=1e-14)


def test_without_eps_scale_and_sign_do_not_matter():
    q, k, _ = inputs(7)
    plain = weights_of(q, k, eps=0.0)
    torch.testing.assert_close(plain.sum(-1), torch.ones_like(plain[..., 0]))
    for factor in (-1.0, 1e-6, 1e6):
        torch.testing.assert_close(weights_of(factor * q, k, eps=0.0), plain, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(weights_of(q, k, eps=0.0, mean_form=True), plain)


def test_a_row_of_zeros_has_no_weights():
    q, k, v = inputs(4)
    assert power_attention(0 * q, k, v).abs().max() == 0


def test_gradients():
    q, k, v = (x[:1, :1, :4, :3].clone().requires_grad_() for x in inputs(4))
    for mean in (False, True):
        assert torch.autograd.gradcheck(
            lambda *x, mean=mean: power_attention(*x, is_causal=True, mean_form=mean), (q, k, v)
        )


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_error_of_the_inverse_in_closed_form(steps):
    z = torch.linspace(0.1, 30, 500, dtype=torch.float64)
    inverse = PolynomialInverse(0.1, 30.0, steps=steps)
    expected = (1 - z * inverse.start(z)) ** (2**steps)
    torch.testing.assert_close(1 - z * inverse(z), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (1e-3, 10.0), (1e-4, 1e4)])
def test_polynomials_keep_their_tolerance(low, high):
    z = torch.tensor(np.geomspace(low, high, 3001)).clamp(low, high)
    assert (z * PolynomialInverse(low, high)(z) - 1).abs().max() <= 1.01e-6
    assert (z.sqrt() * PolynomialRsqrt(low, high)(z) - 1).abs().max() <= 1.01e-6


def test_polynomial_of_an_activation():
    gelu = Polynomial(nn.functional.gelu, -6.0, 8.0)
    z = torch.linspace(-6, 8, 4001, dtype=torch.float64)
    error = (gelu(z) - nn.functional.gelu(z)).abs().max()
    assert error <= 1e-3
    assert abs(error - gelu.error) < 1e-4
    cubic = Polynomial(lambda x: x**3 - x, -2.0, 1.0, degree=3)
    torch.testing.assert_close(cubic(z[1500:1900]), z[1500:1900] ** 3 - z[1500:1900])


@pytest.mark.parametrize("make", [PolynomialInverse, PolynomialRsqrt])
def test_numbers_outside_the_interval(make):
    with pytest.raises(ValueError, match="holds on"):
        make(0.5, 2.0)(torch.tensor([1.0, 2.1]))
    with pytest.raises(ValueError, match="low > 0"):
        make(0.0, 2.0)
    with pytest.raises(ValueError, match="low < high"):
        make(2.0, 1.0)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mean_form", [False, True])
def test_a_whole_model_of_sums_and_products(mean_form):
    torch.manual_seed(0)

    def attention(dim, heads, **place):
        return PowerAttention(dim, heads, mean_form=mean_form)

    model = Transformer((12,), 20, depth=2, dim=16, heads=2, attention=attention).eval()
    x = torch.randint(20, (64, 12))
    made, pieces = to_polynomial(model, x.split(16))
    with Operations() as seen, torch.no_grad():
        found = made(x)
    torch.testing.assert_close(found, model(x), atol=2e-2, rtol=0)
    forbidden = ("exp", "div", "sqrt", "recip", "softmax", "log", "gelu", "erf", "norm", "tanh", "pow")
    assert not [n for n in seen.names - {"expand"} if any(bad in n for bad in forbidden)]
    with Operations() as seen, torch.no_grad():
        model(x)
    assert [n for n in seen.names - {"expand"} if any(bad in n for bad in forbidden)]
    assert [p.what for p in pieces].count("division") == 2
    assert [p.what for p in pieces].count("inverse square root") == 5
    assert [p.what for p in pieces].count("GELU") == 2
    assert all(p.depth > 0 and p.low < p.high for p in pieces)


def test_a_polynomial_model_refuses_what_calibration_did_not_show():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    made, _ = to_polynomial(model, [torch.randn(50, 4)])
    with pytest.raises(ValueError, match="holds on"):
        made(100 * torch.randn(5, 4))


def test_range_penalties_are_zero_inside_and_quadratic_outside():
    inverse, tanh = PolynomialInverse(0.5, 2.0).double(), Polynomial(torch.tanh, -1.0, 3.0).double()
    z = torch.tensor([[0.1, 0.5, 1.0], [2.0, 2.5, 7.0]], dtype=torch.float64, requires_grad=True)
    model = nn.Sequential(inverse, tanh)  # the first leaves what the second takes
    with range_penalties(model) as found:
        out = model(z)
    assert found[0].item() == pytest.approx((0.4**2 + 0.5**2 + 5.0**2) / 6)
    assert found[1].item() == 0
    sum(found).backward()
    slope = torch.tensor([[-0.4, 0.0, 0.0], [0.0, 0.5, 5.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(z.grad, slope)
    torch.testing.assert_close(out, (1 / z.clamp(0.5, 2)).tanh(), atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="holds on"):  # without it as before
        model(z)
    with pytest.raises(ValueError, match="model with polynomials"), range_penalties(nn.Linear(2, 2)):
        pass


def test_training_with_range_penalties_brings_numbers_in():
    torch.manual_seed(0)
    made, _ = to_polynomial(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()), [torch.randn(50, 4)])
    x = 10 * torch.randn(64, 4)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    outside = []
    for _ in range(200):
        with range_penalties(made) as found:
            made(x)
        outside.append(sum(found).item())
        optimizer.zero_grad()
        sum(found).backward()
        optimizer.step()
    assert outside[0] > 1
    assert outside[-1] < 1e-3


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="even power"):
        PowerAttention(8, 2, power=3)
    with pytest.raises(ValueError, match="must not be negative"):
        PowerAttention(8, 2, eps=-1.0)
