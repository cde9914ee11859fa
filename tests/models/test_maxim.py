"""MAXIM: what the two axes mix, gates, any size of image, stages and scales, and its cost."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from logitkit.models import MAXIM, SAM, CrossGating, MAXIMEncoder, MultiAxisGMLP, maxim_loss
from logitkit.models.maxim import GMLP, AxisGate, AxisLinear


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dilated", [False, True])
def test_axis_pixel_by_pixel(dilated):
    size, h, w = 2, 6, 4
    axis, x = AxisLinear(size, dilated).double(), draw(1, h, w, 3)
    axis.linear.bias.data = draw(4)
    expected = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            if dilated:
                row, column = i // (h // size), j // (w // size)
                others = [
                    (i % (h // size) + p * (h // size), j % (w // size) + q * (w // size))
                    for p in (0, 1)
                    for q in (0, 1)
                ]
            else:
                row, column = i % size, j % size
                others = [(i - row + p, j - column + q) for p in (0, 1) for q in (0, 1)]
            weight = axis.linear.weight[row * size + column]
            expected[0, i, j] = axis.linear.bias[row * size + column] + sum(
                weight[k] * x[0, p, q] for k, (p, q) in enumerate(others)
            )
    torch.testing.assert_close(axis(x), expected)


@pytest.mark.parametrize("dilated", [False, True])
def test_gmlp_sees_its_block_or_its_lattice(dilated):
    layer, x = GMLP(3, 2, dilated).double(), draw(6, 4, 3)
    for p in layer.parameters():
        p.data = draw(*p.shape, seed=1)
    seen = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0, 3, 2], x).abs().amax((0, 3)) > 0
    i, j = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    congruent = (i % 3 == 0) & (j % 2 == 0)
    assert torch.equal(seen, congruent if dilated else (i // 2 == 1) & (j // 2 == 1))


def test_a_gate_of_one():
    layer, x = GMLP(3, 2, True).double(), draw(2, 4, 4, 3)
    nn.init.zeros_(layer.mix.linear.weight)
    u, _ = nn.functional.gelu(layer.proj_in(layer.norm(x))).chunk(2, -1)
    torch.testing.assert_close(layer(x), x + layer.proj_out(u))
    gate = AxisGate(3, 2, 2).double()
    for axis in (gate.near, gate.far):
        nn.init.zeros_(axis.linear.weight)
    torch.testing.assert_close(gate(x), gate.proj_out(torch.ones(2, 4, 4, 6).double()))


def test_multi_axis_block_is_both():
    block, x = MultiAxisGMLP(3, 2, 4).double(), draw(2, 3, 4, 8)
    y = nn.functional.gelu(block.proj_in(block.norm(x.permute(0, 2, 3, 1))))
    both = torch.cat([block.far(y[..., :3]), block.near(y[..., 3:])], -1)
    torch.testing.assert_close(block(x), x + block.proj_out(both).permute(0, 3, 1, 2))


def test_cross_gating_and_sam_by_their_equations():
    cross, x, y = CrossGating(3, 5, 4, 2, 2, upsample=True).double(), draw(2, 3, 4, 4), draw(2, 5, 2, 2)
    a, b = (t.permute(0, 2, 3, 1) for t in (cross.conv_x(x), cross.conv_y(cross.up(y))))
    p, q = nn.functional.gelu(cross.in_x(cross.norm_x(a))), nn.functional.gelu(cross.in_y(cross.norm_y(b)))
    b2 = b + cross.out_y(q * cross.gate_x(p))
    a2 = a + b2 + cross.out_x(p * cross.gate_y(q))
    for found, expected in zip(cross(x, y), (a2, b2), strict=True):
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))
    sam, image = SAM(3, 1).double(), draw(2, 1, 4, 4)
    features, restored = sam(x, image)
    torch.testing.assert_close(restored, image + sam.image(x))
    torch.testing.assert_close(features, x + sam.value(x) * torch.sigmoid(sam.gate(restored)))


def test_any_size_with_the_same_weights():
    torch.manual_seed(0)
    model = MAXIM(1, depth=2, features=4, block=2, lattice=2).eval()
    for size in ((8, 8), (16, 24), (13, 7), (3, 20)):
        assert model(torch.rand(1, 1, *size)).shape == (1, 1, *size)
    x = torch.rand(1, 1, 8, 6)
    reflected = torch.cat([x, x[..., [4, 3]]], dim=3)
    torch.testing.assert_close(model(x), model(reflected)[..., :6])


def test_stages_scales_and_loss():
    torch.manual_seed(0)
    model, x = MAXIM(3, stages=2, depth=2, features=4, block=2, lattice=2, scales=2), torch.rand(2, 3, 10, 8)
    outputs = model.outputs(x)
    assert [[tuple(o.shape[2:]) for o in stage] for stage in outputs] == [[(10, 8), (5, 4)]] * 2
    torch.testing.assert_close(model(x), outputs[-1][0])
    maxim_loss(outputs, x).backward()
    assert all(p.grad is not None for p in model.parameters())
    same = [[x, x[..., 1::2, 1::2]]] * 3
    assert maxim_loss(same, x).item() == pytest.approx(6e-3, rel=1e-4)
    assert maxim_loss([[x + 0.5]], x).item() == pytest.approx(0.5 + 0.1 * 0.5 * 80**0.5 / (10 * 5), rel=1e-4)


def test_cost_is_linear_in_pixels():
    model = MAXIM(1, depth=2, features=4, block=2, lattice=2)

    def flops(side):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.rand(1, 1, side, side))
        return counter.get_total_flops()

    assert flops(64) == pytest.approx(4 * flops(32), rel=0.01)


@pytest.mark.parametrize(
    ("shape", "map"), [((1, 8, 8), (4, 4)), ((3, 32, 32), (4, 4)), ((1, 9, 20), (8, 12))]
)
def test_encoder(shape, map):
    model, x = MAXIMEncoder(shape), torch.rand(2, *shape)
    features = model.forward_features(x)
    assert features.shape == (2, model.out_features, *map)
    torch.testing.assert_close(model(x), features.mean((2, 3)))


def test_bad_settings():
    with pytest.raises(ValueError, match="block must be a whole number of at least 1, got 0"):
        MAXIM(block=0)
    with pytest.raises(ValueError, match="scales must be at most the depth, got 4 and 3"):
        MAXIM(scales=4)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, h, w\)"):
        MAXIM(features=4)(torch.rand(1, 1, 8, 8))
