"""Activator: the unit by its equation, what no token sees, and what the network cannot know."""

import pytest
import torch
from torch import nn

from logitkit.layers import ActivatorBlock, GatingUnit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normed(x, weight, bias):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("shared", [True, False])
def test_unit_is_the_equation(shared):
    unit, x = GatingUnit(6, 10, shared_norm=shared).double(), draw(2, 3, 6)
    for seed, p in enumerate(unit.parameters()):
        p.data = draw(*p.shape, seed=seed)
    n1, n2 = unit.norm1, unit.norm2
    assert (n1 is n2) == shared
    s = x @ unit.fc1.weight.T + unit.fc1.bias
    u = normed(s * (1 + torch.erf(s / 2**0.5)) / 2, n1.weight, n1.bias)
    v = normed(x @ unit.fc2.weight.T + unit.fc2.bias, n2.weight, n2.bias)
    torch.testing.assert_close(unit(x), (u * v) @ unit.fc3.weight.T + unit.fc3.bias)


def test_nothing_gates_where_the_gate_has_no_weights():
    unit, x = GatingUnit(6, 10).double(), draw(4, 6)
    nn.init.zeros_(unit.fc2.weight), nn.init.zeros_(unit.fc2.bias)
    unit.norm1.bias.data = draw(10, seed=1)
    u = unit.norm1(nn.functional.gelu(unit.fc1(x)))
    torch.testing.assert_close(unit(x), unit.fc3(u * unit.norm1.bias))


def test_no_token_sees_another():
    block, x = ActivatorBlock(6, 10).double(), draw(5, 6)
    seen = torch.autograd.functional.jacobian(block, x).abs().amax((1, 3))
    assert (seen.diagonal() > 0).all()
    assert (seen - seen.diag().diag() == 0).all()


@pytest.mark.parametrize("ffn", [True, False])
def test_parameters_of_a_block(ffn):
    d, h = 12, 20
    block = ActivatorBlock(d, h, ffn=ffn)
    expected = 3 * d * h + 2 * h + d + 2 * h + 2 * d + (2 * d * h + h + d if ffn else 0)
    assert sum(p.numel() for p in block.parameters()) == expected
