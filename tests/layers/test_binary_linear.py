"""Binary linear layers against loops, XNOR-Net's scale, numbers that the authors' code printed, and their
packed form."""

import pytest
import torch
from torch import nn

from logitkit.layers import BinaryLinear, PackedLinear, pack, storage_bits
from logitkit.layers.binary_linear import PAYS
from logitkit.ops import pack_signs, straight_signs, unpack_signs, use

BOTH = pytest.mark.parametrize("act_bits", [1, 32])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sign(x):
    return -1.0 if x < 0 else 1.0


def test_signs_and_where_their_gradient_passes():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.999, 1.0, 3.0], requires_grad=True)
    found = straight_signs(x)
    assert found.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    found.backward(torch.arange(1.0, 9.0))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 0, 0]
    assert torch.equal(straight_signs(x.detach()), found)
    assert straight_signs(torch.tensor([float("nan")])).isnan().all()


def test_unpacked_signs_are_the_signs():
    x = draw(3, 5, 130)
    assert torch.equal(unpack_signs(pack_signs(x)).double(), straight_signs(x))


@BOTH
@pytest.mark.parametrize("learn_scale", [True, False])
def test_a_loop_over_plain_numbers(act_bits, learn_scale):
    torch.manual_seed(0)
    layer, x = BinaryLinear(5, 3, act_bits, learn_scale).double(), draw(2, 5)
    w, b = layer.weight.tolist(), layer.bias.tolist()
    scale = [sum(abs(v) for v in row) / 5 for row in w]
    if learn_scale:
        layer.scale.data += 0.1
        scale = [s + 0.1 for s in scale]
    expected = []
    for row in x.tolist():
        row = [sign(v) for v in row] if act_bits == 1 else row
        expected.append([
            scale[o] * sum(sign(w[o][i] - sum(w[o]) / 5) * row[i] for i in range(5)) + b[o] for o in range(3)
        ])  # fmt: skip
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))


def test_scales_start_as_xnor_nets():
    """For rows of mean 0, s sign(W) is the nearest to W among all multiples of signs: brute force."""
    layer = BinaryLinear(6, 4)
    w = draw(4, 6, dtype=torch.float32)
    layer.weight.data.copy_(w - w.mean(1, keepdim=True))
    layer.reset_scale()
    grid = torch.linspace(0, 2, 4001)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6)
    for row, s in zip(layer.weight.detach(), layer.scale, strict=True):
        errors = (row - grid[:, None, None] * every).square().sum(-1)
        at, which = divmod(int(errors.argmin()), len(every))
        assert abs(grid[at] - s) <= grid[1]
        assert torch.equal(every[which], straight_signs(row))


def test_fixed_scales_follow_the_weights_without_a_gradient():
    layer, x = BinaryLinear(4, 2, 32, learn_scale=False, bias=False).double(), draw(3, 4)
    out = layer(x)
    with torch.no_grad():
        layer.weight *= 2
    torch.testing.assert_close(layer(x), 2 * out)
    (grad,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    into = layer.scales()[:, None] * x.sum(0) * (layer.centred().abs() < 1)
    torch.testing.assert_close(grad, into - into.mean(1, keepdim=True))


def wave(count, step, size):
    return (size * torch.sin(step * torch.arange(1, count + 1).double())).float()


def test_the_authors_mlp():
    """`BiMlp_adapscaling_1w32a(8, 16, 8)` in float32."""
    fc1, fc2 = BinaryLinear(8, 16, 32), BinaryLinear(16, 8, 32)
    for k, p in enumerate((fc1.weight, fc1.bias, fc2.weight, fc2.bias)):
        p.data.copy_(wave(p.numel(), 0.8 + 0.1 * k, 0.5).view_as(p))
    fc1.reset_scale()
    fc2.reset_scale()
    x = wave(24, 1.3, 1.5).view(3, 8).requires_grad_()
    out = fc2(nn.functional.gelu(fc1(x)))
    first = [
        1.36657429,
        -0.52712142,
        0.12383299,
        0.16998786,
        -0.98353392,
        0.93906236,
        -0.67831421,
        2.40248299,
    ]
    torch.testing.assert_close(out[0], torch.tensor(first))
    loss = out.square().sum()
    loss.backward()
    assert loss.item() == pytest.approx(17.86896515, rel=1e-6)
    sizes = {
        x: 33.26566315, fc1.weight: 104.39320374, fc1.bias: 48.35898590, fc1.scale: 134.32542419,
        fc2.weight: 43.80410004, fc2.bias: 24.07931137, fc2.scale: 88.40032196,
    }  # fmt: skip
    for tensor, size in sizes.items():
        assert tensor.grad.abs().sum().item() == pytest.approx(size, rel=1e-5)


@BOTH
@pytest.mark.parametrize("learn_scale", [True, False])
@pytest.mark.parametrize(("rows", "fan_in", "fan_out"), [(2, 5, 3), (300, 130, 70)])
def test_packed_is_the_same_bit_for_bit(act_bits, learn_scale, rows, fan_in, fan_out):
    layer = BinaryLinear(fan_in, fan_out, act_bits, learn_scale)
    x = draw(2, rows, fan_in, dtype=torch.float32)
    x[0, 0, 0] = 0.0
    expected = layer(x).detach()
    with torch.no_grad():
        for name in ("cpu", "reference"):
            with use(name):
                assert torch.equal(layer(x), expected)
                assert torch.equal(layer.packed()(x), expected)
    assert x.numel() * fan_out >= PAYS or rows == 2


def small(act_bits):
    return nn.Sequential(
        BinaryLinear(128, 64, act_bits), nn.GELU(), BinaryLinear(64, 32, act_bits), nn.Linear(32, 4)
    )


@BOTH
def test_a_packed_model(act_bits):
    model = small(act_bits)
    made, x = pack(model), draw(7, 128, dtype=torch.float32)
    assert torch.equal(made(x), model(x))
    assert [type(m) for m in made] == [PackedLinear, nn.GELU, PackedLinear, nn.Linear]
    assert isinstance(model[0], BinaryLinear)
    one_bit, numbers = 128 * 64 + 64 * 32, 2 * (64 + 32) + 32 * 4 + 4
    assert storage_bits(made) == one_bit + 32 * numbers
    assert storage_bits(model) == 32 * (one_bit + numbers)
    fresh = pack(small(act_bits))
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(x), made(x))


def test_words_are_padded_and_that_counts():
    assert storage_bits(BinaryLinear(65, 3, bias=False).packed()) == 3 * (128 + 32)
    shared = nn.Linear(4, 4, bias=False)
    assert storage_bits(nn.Sequential(shared, shared)) == 16 * 32


def test_full_precision_is_a_linear_layer():
    plain = nn.Linear(5, 3)
    layer = BinaryLinear.of(plain)
    layer.binary = False
    x = draw(2, 5, dtype=torch.float32)
    assert torch.equal(layer(x), plain(x))
    with pytest.raises(ValueError, match="with 0 of 1"):
        pack(layer)


def test_bad_input():
    for settings, message in (((0, 3), "in_features"), ((3, 3, 2), "act_bits must be 1 or 32, got 2")):
        for kind in (BinaryLinear, PackedLinear):
            with pytest.raises(ValueError, match=message):
                kind(*settings)
    layer, x = BinaryLinear(3, 2), torch.tensor([[1.0, float("nan"), 0.0]])
    for each in (layer, layer.packed()):
        with pytest.raises(ValueError, match="NaN"):
            each(x)
        with pytest.raises(ValueError, match="shape"):
            each(x[:, :2])
    with pytest.raises(ValueError, match="with 0 of 0"):
        pack(nn.Linear(2, 2))
