"""The Inception mixer: the authors' numbers, attention alone, what each branch sees, and the model."""

import pytest
import torch
from torch import nn

from logitkit.layers import InceptionMixer


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def test_numbers_of_the_authors_code():
    """sail-sg/iFormer, models/inception_transformer.py, Mixer, in float64 on sine waves."""
    part = InceptionMixer(8, (4, 4), heads=4, attn_heads=2, pool=2).double()
    theirs = [
        part.widen.weight, part.depthwise.weight, part.pooled.weight, part.pooled.bias,
        part.in_proj.weight, part.in_proj.bias, part.fuse.weight, part.out_proj.weight, part.out_proj.bias,
    ]  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(theirs):
            p.copy_(wave(*p.shape, k=1 + 0.1 * i))
    x = wave(2, 16, 8, k=0.3).requires_grad_()
    out = part(x)
    out.square().sum().backward()
    for found, expected in (
        (out[0, 5, :4], [0.49545867, -0.60246946, 0.70180674, -0.79264748]),
        (out[1, 12, -4:], [-0.59226535, 0.44523416, -0.28761546, 0.12118476]),
        (x.grad[1, 3, :4], [5.011513, -8.305072, 0.0, 0.0]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_all_heads_to_attention_is_attention():
    part = InceptionMixer(8, (2, 3), heads=2, attn_heads=2).double()
    plain = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        part.fuse.weight.zero_()
        part.out_proj.weight.copy_(torch.eye(8)[..., None, None]), part.out_proj.bias.zero_()
        plain.in_proj_weight.copy_(part.in_proj.weight), plain.in_proj_bias.copy_(part.in_proj.bias)
        plain.out_proj.weight.copy_(torch.eye(8)), plain.out_proj.bias.zero_()
    x = wave(2, 6, 8)
    torch.testing.assert_close(part(x), plain(x, x, x)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attn_heads", [0, 1, 2, 3, 4])
def test_twice_what_is_fine_and_once_what_is_coarse(attn_heads):
    part, x = InceptionMixer(16, (5, 3), heads=4, attn_heads=attn_heads, pool=2).double(), wave(1, 16, 5, 3)
    widths = [b.shape[1] for b in part.branches(x)]
    high, low = 16 - 4 * attn_heads, 4 * attn_heads
    assert sum(widths) == 2 * high + low == part.out_proj.in_channels
    assert all(b.shape[2:] == (5, 3) for b in part.branches(x))


def reach(branch, x, place):
    x = x.clone().requires_grad_()
    branch(x)[0, :, place[0], place[1]].sum().backward()
    return x.grad[0].abs().sum(0)


def test_what_the_branches_see():
    part, x = InceptionMixer(16, (6, 6), heads=4, attn_heads=2, pool=2).double(), wave(1, 16, 6, 6, k=0.37)
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    near = ((rows - 2).abs() <= 1) & ((columns - 3).abs() <= 1)
    for which in (0, 1):
        seen = reach(lambda x, which=which: part.branches(x)[which], x, (2, 3)) > 0
        assert not (seen & ~near).any()
        assert seen.any()
    assert torch.equal(reach(lambda x: part.branches(x)[0], x, (2, 3)) > 0, near)
    low = reach(lambda x: part.branches(x)[2], x, (2, 3))
    assert (low > 0).all()
    cells = low.unflatten(0, (3, 2)).unflatten(2, (3, 2))
    torch.testing.assert_close(cells, cells[:, :1, :, :1].expand_as(cells))
    out = part.branches(x)[2].unflatten(2, (3, 2)).unflatten(4, (3, 2))
    torch.testing.assert_close(out, out[:, :, :, :1, :, :1].expand_as(out))


def test_cells_at_the_border_are_means_of_what_they_hold():
    part, x = InceptionMixer(4, (3, 3), heads=1, attn_heads=1, pool=2).double(), wave(1, 4, 3, 3)
    first, last = slice(2), slice(2, 3)
    cells = torch.stack([x[0, :, i, j].mean((1, 2)) for i in (first, last) for j in (first, last)])
    q, k, v = part.in_proj(cells).chunk(3, -1)
    mixed = (q @ k.T / 2).softmax(-1) @ v
    torch.testing.assert_close(part.branches(x)[0][0, :, 0, 0], mixed[0])
    torch.testing.assert_close(part.branches(x)[0][0, :, 2, 1], mixed[2])
    torch.testing.assert_close(part.branches(x)[0][0, :, 2, 2], mixed[3])
