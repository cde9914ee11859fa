"""Axial attention against attention on each line, and what a layer relates."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import AxialAttention, SoftmaxAttention, axial_attention


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_each_line_by_itself(axis, causal):
    grid = (2, 3, 4)
    q, k, v = (draw(2, 2, 24, 5, seed=s) for s in range(3))
    out = axial_attention(q, k, v, grid, axis, is_causal=causal).view(2, 2, *grid, 5)
    q, k, v = (x.view(2, 2, *grid, 5).movedim(2 + axis % 3, 4) for x in (q, k, v))
    out = out.movedim(2 + axis % 3, 4)
    for a in range(q.shape[2]):
        for b in range(q.shape[3]):
            line = F.scaled_dot_product_attention(
                q[:, :, a, b], k[:, :, a, b], v[:, :, a, b], is_causal=causal
            )
            torch.testing.assert_close(out[:, :, a, b], line)


def test_one_row_is_ordinary_attention():
    part, plain = AxialAttention(8, 2, grid=(1, 6)).double(), SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict())
    padding = torch.tensor([[False] * 5 + [True], [False] * 6])
    x = draw(2, 6, 8)
    torch.testing.assert_close(part(x, key_padding_mask=padding)[0], plain(x, key_padding_mask=padding)[0])


def reach(function, x, token):
    x = x.clone().requires_grad_()
    function(x)[0, token].sum().backward()
    return x.grad[0].abs().sum(-1) > 0


def test_one_layer_sees_its_line_and_two_see_everything():
    rows, columns = (AxialAttention(8, 2, grid=(3, 4), layer=i).double() for i in (0, 1))
    x, index = draw(1, 12, 8), torch.arange(12)
    assert torch.equal(reach(lambda x: rows(x)[0], x, 6), index // 4 == 1)
    assert torch.equal(reach(lambda x: columns(x)[0], x, 6), index % 4 == 2)
    assert reach(lambda x: columns(rows(x)[0])[0], x, 6).all()
    down = AxialAttention(8, 2, grid=(3, 4), axis=0, causal=True).double()
    assert torch.equal(reach(lambda x: down(x)[0], x, 6), (index % 4 == 2) & (index <= 6))


def test_an_axis_that_is_not_there():
    with pytest.raises(ValueError, match=r"axis must lie in .* for a grid of 2 axes, got 2"):
        AxialAttention(8, 2, grid=(2, 2), axis=2)
