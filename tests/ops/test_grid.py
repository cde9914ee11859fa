"""Partitions against index arithmetic, their inverses, and depthwise convolution against a loop."""

import pytest
import torch

from logitkit.ops.grid import depthwise, grid_of, lattices, merge_lattices, merge_windows, rotary_2d, windows

SIZES = [(2, 3), (1, 6), (4, 1), (4, 6), (1, 1), (2, 6), (4, 2)]


def numbered():
    """Two grids of 4x6 tokens with two channels: row and column."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    x = torch.stack([rows, columns], -1)
    return torch.stack([x, x + 100])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_windows_hold_neighbours(size):
    x = numbered()
    parts = windows(x, size)
    (p, q), across = size, 6 // size[1]
    for i in range(parts.shape[1]):
        for t in range(p * q):
            row, column = i // across * p + t // q, i % across * q + t % q
            assert parts[0, i, t].tolist() == [row, column]
            assert parts[1, i, t].tolist() == [row + 100, column + 100]
    assert torch.equal(merge_windows(parts, size, (4, 6)), x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lattices_hold_tokens_a_step_apart(size):
    x = numbered()
    parts = lattices(x, size)
    (p, q), down, across = size, 4 // size[0], 6 // size[1]
    assert parts.shape == (2, down * across, p * q, 2)
    for i in range(parts.shape[1]):
        for t in range(p * q):
            assert parts[0, i, t].tolist() == [i // across + t // q * down, i % across + t % q * across]
    assert torch.equal(merge_lattices(parts, size, (4, 6)), x)


def test_sizes_that_do_not_divide_are_refused():
    for function in (windows, lattices):
        with pytest.raises(ValueError, match=r"3x6 tokens do not divide a grid of 4x6"):
            function(numbered(), (3, 6))
    with pytest.raises(ValueError, match="2x0"):
        merge_windows(windows(numbered(), (2, 3)), (2, 0), (4, 6))


def test_depthwise_is_the_sum_over_neighbours():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 2, generator=g, dtype=torch.float64)
    weight = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    bias = torch.randn(2, generator=g, dtype=torch.float64)
    expected = bias.expand(2, 3, 4, 2).clone()
    for i in range(3):
        for j in range(4):
            for a in range(3):
                for b in range(5):
                    row, column = i + a - 1, j + b - 2
                    if 0 <= row < 3 and 0 <= column < 4:
                        expected[:, i, j] += weight[:, a, b] * x[:, row, column]
    torch.testing.assert_close(depthwise(x, weight, bias), expected)
    with pytest.raises(ValueError, match="odd size, got 2x3"):
        depthwise(x, weight[:, :2, :3])


def test_products_depend_on_the_offset_of_row_and_column():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=g, dtype=torch.float64).expand(12, 8) for _ in range(2))
    products = (rotary_2d(q, (3, 4)) @ rotary_2d(k, (3, 4)).T).view(3, 4, 3, 4)
    torch.testing.assert_close(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1])
    assert len({round(v, 9) for v in products[0, 0].flatten().tolist()}) == 12
    torch.testing.assert_close(rotary_2d(q, (3, 4)).norm(dim=-1), q.norm(dim=-1))
    with pytest.raises(ValueError, match="multiple of 4"):
        rotary_2d(q[:, :6], (3, 4))


def test_tokens_fill_their_grid():
    assert grid_of(9, None) == (3, 3)
    assert grid_of(8, (2, 4)) == (2, 4)
    with pytest.raises(ValueError, match=r"square grid.* got 8"):
        grid_of(8, None)
    with pytest.raises(ValueError, match="fill 2x3, got 8"):
        grid_of(8, (2, 3))
