"""HyperZ.Z.W: products against loops, kernels on finer grids, what evaluation depends on, and gradients."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.layers import (
    SFNEBlock,
    SlowNet,
    hyper_zzw_gate,
    hyper_zzw_global,
    hyper_zzw_local,
)
from logitkit.layers.hyperzzw import RGU, GroupStandardization


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_operators_on_single_numbers():
    w, x, z = draw(2, 3, 3), draw(1, 2, 3, 3, seed=1), draw(1, 2, 3, 3, seed=2)
    found = hyper_zzw_global(w, x, z)
    expected = sum(x[0, 1, 0, k] * w[1, 0, k] * z[0, 1, k, 2] for k in range(3))
    assert found[0, 1, 0, 2].item() == pytest.approx(expected.item())
    torch.testing.assert_close(hyper_zzw_global(torch.ones(2, 3, 3).double(), x, z), torch.matmul(x, z))
    delta = torch.zeros(2, 5, 5, dtype=torch.float64)
    delta[:, 2, 2] = 1
    torch.testing.assert_close(hyper_zzw_local(delta, x), x)
    found = hyper_zzw_local(w, x)[0, 1, 0, 0]  # the upper left corner, with zeros around
    expected = sum(w[1, 1 + i, 1 + j] * x[0, 1, i, j] for i in (0, 1) for j in (0, 1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(hyper_zzw_gate(w, x), x * w * x)


def test_slow_net_is_the_equation():
    torch.manual_seed(0)
    net = SlowNet(3, (4, 5), hidden=6).double()
    net.position.data = draw(20, 1)
    h = None
    for row, column in ((0, 0), (2, 3), (3, 4)):
        c = torch.tensor([-1 + 2 * row / 3, -1 + 2 * column / 4], dtype=torch.float64)
        h = torch.sin(net.sines[0](c))
        for i in (0, 1):
            h = torch.sin(net.sines[i + 1](c)) * net.linears[i](h) + net.position[row * 5 + column]
        torch.testing.assert_close(net()[:, row, column], net.out(h))


def test_kernels_agree_where_grids_meet():
    torch.manual_seed(0)
    net = SlowNet(3, (4, 4)).double()
    torch.testing.assert_close(net.at((7, 7))[:, ::2, ::2], net())


def test_start_of_the_slow_net():
    torch.manual_seed(0)
    net = SlowNet(3, (8, 8), hidden=2000, w0=0.5)
    frequency = net.sines[0].weight.abs().mean().item()  # uniform in +-1/sqrt(2), times 2 pi w0 Gamma(6, 1)
    assert frequency == pytest.approx(2 * math.pi * 0.5 * 6 / math.sqrt(2) / 2, rel=0.05)
    bound = math.sqrt(3 / 2000) / 8
    assert 0.95 * bound < net.out.weight.abs().max().item() <= bound


def test_renormalisation_passes_gradients_through_the_unit_part_only():
    torch.manual_seed(0)
    context = SlowNet(3, (3, 3), hidden=4, context=True).double().context
    context.alpha.data, context.beta.data = draw(2, 4), draw(2, 4, seed=1)
    h, weight = draw(9, 4, seed=2).requires_grad_(), draw(9, 4, seed=3)
    found = context.renormalised(1, h)
    unit = h / h.square().sum(0).sqrt()
    torch.testing.assert_close(found, context.alpha[1] * h + context.beta[1] * unit)
    (found * weight).sum().backward()
    (expected,) = torch.autograd.grad((context.beta[1].detach() * unit * weight).sum(), h)
    torch.testing.assert_close(h.grad, expected)
    torch.testing.assert_close(context.alpha.grad[1], (h.detach() * weight).sum(0))


def test_rgu_by_its_equation():
    torch.manual_seed(0)
    rgu, x = RGU(3, (4, 4)).double(), draw(2, 3, 4, 4)
    rgu.position.data = draw(4, 4, seed=1)
    gated = rgu.k(x) * rgu.q(rgu.v(x))
    mean, variance = gated.mean((2, 3), keepdim=True), gated.var((2, 3), correction=0, keepdim=True)
    inner = F.gelu((gated - mean) / (variance + 1e-5).sqrt()) + rgu.position
    torch.testing.assert_close(rgu(x), rgu.y(inner))


@pytest.mark.parametrize(("channels", "groups"), [(24, 12), (16, 4), (5, 1)])
def test_groups_are_standardised_in_turn(channels, groups):
    x = 3 * draw(6, channels, 4, 4) + draw(6, channels, 1, 1, seed=1)
    found = GroupStandardization(channels).double()(x).unflatten(1, (groups, -1))
    for g in range(groups):
        axes = (0, 2, 3) if g % 2 == 0 else (2, 3)
        assert found[:, g].mean(axes).abs().max() < 1e-12
        torch.testing.assert_close(found[:, g].var(axes, correction=0).mean().item(), 1.0, rtol=1e-3, atol=0)


def test_preactivations_of_every_block_are_centred():
    torch.manual_seed(0)
    block = SFNEBlock(12, 8, 24, before=2)
    x = torch.randn(16, 12, 8, 8)
    features = block.preactivation(x, [x[:, :6], x[:, :4]])
    assert features.shape == (16, 24, 8, 8)
    assert features.mean().abs() < 1e-3
    assert len(block.branches(x)) == 10
