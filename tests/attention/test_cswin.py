"""Cross-shaped windows against attention with a mask of stripes, and the numbers of the authors."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import CrossShapedAttention, SoftmaxAttention, window_lepe


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def make(grid, stripe=1, **settings):
    torch.manual_seed(0)
    return CrossShapedAttention(8, 4, grid=grid, stripe=stripe, **settings).double()


@pytest.mark.parametrize(("grid", "stripe"), [((4, 6), 2), ((4, 6), 1), ((3, 5), 2)], ids=str)
def test_each_half_is_attention_with_a_mask_of_stripes(grid, stripe):
    part, x = make(grid, stripe, lepe=False), wave(2, grid[0] * grid[1], 8)
    q, k, v = part.project(x, x, x)
    index = torch.arange(grid[0] * grid[1])
    rows, columns = index // grid[1] // stripe, index % grid[1] // stripe
    same = torch.stack([s[:, None] == s for s in (rows, rows, columns, columns)])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=same)
    torch.testing.assert_close(part.attend(q, k, v, None, None), expected, rtol=1e-9, atol=1e-12)


def test_a_stripe_as_wide_as_the_grid_is_full_attention():
    part, full, x = make((3, 3), 3, lepe=False), SoftmaxAttention(8, 4).double(), wave(2, 9, 8)
    full.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(x)[0], full(x)[0])
    whole = make((3, 3), 3)
    value = wave(2, 9, 8, k=0.7)
    near = window_lepe(value, (3, 3), (3, 3), whole.lepe.weight[:, 0], whole.lepe.bias)
    maps = F.conv2d(value.mT.unflatten(2, (3, 3)), whole.lepe.weight, whole.lepe.bias, padding=1, groups=8)
    torch.testing.assert_close(near, maps.flatten(2).mT)


def test_lepe_stops_at_the_border_of_a_stripe():
    value, weight = wave(1, 12, 2), wave(2, 3, 3, k=0.4)
    found = window_lepe(value, (4, 3), (2, 3), weight, torch.zeros(2).double())
    for i in range(12):
        total = torch.zeros(2, dtype=torch.float64)
        for j in range(12):
            down, right = j // 3 - i // 3, j % 3 - i % 3
            if i // 6 == j // 6 and abs(down) <= 1 and abs(right) <= 1:
                total += weight[:, down + 1, right + 1] * value[0, j]
        torch.testing.assert_close(found[0, i], total)


def test_numbers_of_the_authors_code():
    """microsoft/CSWin-Transformer, models/cswin.py, attention of CSWinBlock, in float64 on sine waves.

    Theirs has the vertical stripes first, so that the halves of the heads are swapped."""
    part = make((4, 4), 2)
    swap = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    order = torch.cat([swap, 8 + swap, 16 + swap])
    first, second = ((wave(4, 1, 3, 3, k=1 + i), wave(4, k=1.1 + i)) for i in (0.4, 0.6))
    with torch.no_grad():
        part.in_proj.weight.copy_(wave(24, 8)[order]), part.in_proj.bias.copy_(wave(24, k=1.1)[order])
        part.out_proj.weight.copy_(wave(8, 8, k=1.2)[:, swap]), part.out_proj.bias.copy_(wave(8, k=1.3))
        part.lepe.weight.copy_(torch.cat([second[0], first[0]]))
        part.lepe.bias.copy_(torch.cat([second[1], first[1]]))
    x = wave(2, 16, 8, k=0.3).requires_grad_()
    out = part(x)[0]
    out.square().sum().backward()
    for found, expected in (
        (out[0, 5, :4], [3.814474241, -3.051364991, 0.755477065, 1.96554494]),
        (out[1, 12, -4:], [-3.050052764, 3.224396675, -1.944387623, 0.063111369]),
        (x.grad[1, 3, :4], [-22.1537936, 120.369233, -8.8640323, -118.0850695]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def reach(function, x, token):
    """Which tokens the output at `token` depends on."""
    x = x.clone().requires_grad_()
    function(x)[0, token].sum().backward()
    return x.grad[0].abs().sum(-1) > 0


def test_one_layer_sees_the_cross_and_two_everything():
    part, x = make((4, 5), lepe=False), wave(1, 20, 8)
    index = torch.arange(20)
    cross = (index // 5 == 1) | (index % 5 == 3)
    assert torch.equal(reach(lambda x: part(x)[0], x, 8), cross)
    assert reach(lambda x: part(part(x)[0])[0], x, 8).all()


def test_a_transposed_image_swaps_the_halves():
    part, turned, x = make((2, 4)), make((4, 2)), wave(1, 8, 8)
    with torch.no_grad():
        swap = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
        order = torch.cat([swap, 8 + swap, 16 + swap])
        turned.in_proj.weight.copy_(part.in_proj.weight[order])
        turned.in_proj.bias.copy_(part.in_proj.bias[order])
        turned.out_proj.weight.copy_(part.out_proj.weight[:, swap])
        turned.out_proj.bias.copy_(part.out_proj.bias)
        turned.lepe.weight.copy_(part.lepe.weight[swap].mT), turned.lepe.bias.copy_(part.lepe.bias[swap])
    transpose = torch.arange(8).view(2, 4).T.flatten()
    torch.testing.assert_close(turned(x[:, transpose])[0], part(x)[0][:, transpose])


def test_the_grid_changes_no_parameter():
    sizes = {tuple(p.shape for p in make(grid, 2).parameters()) for grid in ((2, 2), (4, 8), (5, 7))}
    assert len(sizes) == 1


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"num_heads must be even.* got 3"):
        CrossShapedAttention(9, 3)
    with pytest.raises(ValueError, match="stripe must be at least 1, got 0"):
        CrossShapedAttention(8, 4, stripe=0)
