"""GR-KAN against plain floats, the start of its activations, its gradient at b = 0, and conversion."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.nn import functional as F

from logitkit.layers import GRKAN, GroupRational, convert_mlp, fit_rational, group_rational
from logitkit.layers.kat import gain

# GELU as released (rational_kat_cu, kat_rational/init.json); 0.002954 is the error of its numbers with the
# denominator of the paper, which is also that of kat_rational/gain.py
RELEASED_A = [-0.00153969, 0.51692871, 0.44075827, 0.0972553, -0.00884418, -0.00378675]
RELEASED_B = [-0.14171056, -0.06481231, -0.0444695, 0.01283776]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rational(x, a, b):
    """The equation on one float."""
    p = sum(c * x**k for k, c in enumerate(a))
    return p / (1 + abs(sum(c * x ** (k + 1) for k, c in enumerate(b))))


def test_plain_floats_and_groups_of_neighbours():
    x, a, b = draw(3, 6), draw(6, seed=1), draw(2, 4, seed=2)
    found = group_rational(x, a, b)
    expected = [[rational(v, a.tolist(), b[j // 3].tolist()) for j, v in enumerate(r)] for r in x.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    maps = x.view(3, 6, 1, 1).expand(3, 6, 2, 5)
    torch.testing.assert_close(group_rational(maps, a, b, axis=1)[:, :, 1, 4], found)


def test_released_coefficients_are_a_gelu():
    x = torch.linspace(-3, 3, 601).double()
    a, b = torch.tensor(RELEASED_A).double(), torch.tensor([RELEASED_B]).double()
    error = (group_rational(x[:, None], a, b)[:, 0] - F.gelu(x)).abs().max()
    assert error.item() == pytest.approx(0.002954, abs=2e-5)


def test_gradient_everywhere_and_at_a_denominator_of_zero():
    x, a, b = draw(4, 6).requires_grad_(), draw(6, seed=1).requires_grad_(), draw(2, 4, seed=2)
    assert torch.autograd.gradcheck(group_rational, (x, a, b.requires_grad_()))
    b = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    group_rational(x, a, b).sum().backward()
    p = sum(c * x.detach() ** k for k, c in enumerate(a.detach()))
    expected = [-(p * x.detach() ** k).view(4, 2, 3).sum((0, 2)) for k in range(1, 5)]
    torch.testing.assert_close(b.grad, torch.stack(expected, dim=1))


@pytest.mark.parametrize("fn", [F.gelu, F.silu, torch.tanh], ids=lambda f: f.__name__)
def test_fits(fn):
    a, b = fit_rational(fn)
    x = torch.linspace(-8, 8, 2001).double()
    assert (group_rational(x[:, None], a, b[None])[:, 0] - fn(x)).abs().max() < 0.01


def test_denominator_is_at_least_one():
    b, x = 100 * draw(3, 4), torch.linspace(-100, 100, 999).double()
    one = torch.eye(6, dtype=torch.float64)[0]
    assert (1 / group_rational(x[:, None].expand(-1, 3), one, b) >= 1).all()


def test_starts():
    x = draw(5, 16).float()
    assert torch.equal(GroupRational(16)(x), x)
    assert sum(p.numel() for p in GroupRational(16).parameters()) == 6 + 8 * 4

    def density(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    squares, _ = quad(lambda x: (x / (1 + math.exp(-x))) ** 2 * density(x), -20, 20)
    assert gain(F.silu) == pytest.approx(1 / squares, abs=1e-6)
    assert (gain(F.silu), gain(F.gelu)) == pytest.approx((2.811, 2.352), abs=1e-3)


@pytest.mark.parametrize("init", ["gelu", "silu"])
def test_variance_survives_six_layers(init):
    torch.manual_seed(0)
    with torch.no_grad():
        x = torch.randn(200, 512)
        for _ in range(3):
            x = GRKAN(512, 512, init=init)(x)
            assert 0.5 <= x.var().item() <= 2


def test_conversion():
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Dropout(0.5), nn.Linear(64, 8)).eval().double()
    x = 2 * draw(50, 16)
    torch.testing.assert_close(convert_mlp(mlp)(x), mlp(x), rtol=0, atol=0.005)
    with pytest.raises(ValueError, match="Linear, activation, Linear"):
        convert_mlp(mlp[:2])


def test_powers_do_not_overflow_in_half_precision():
    x = torch.full((1, 16), 60.0, dtype=torch.float16)
    assert GRKAN(16, 16).half()(x).isfinite().all()


def test_bad_settings():
    with pytest.raises(ValueError, match="groups must divide the channels, got 8 groups of 12"):
        GRKAN(12, 24)
    with pytest.raises(ValueError, match="init must be one of"):
        GroupRational(16, init="relu")
    with pytest.raises(ValueError, match="lo must be below hi"):
        fit_rational(F.gelu, 3, -3)
