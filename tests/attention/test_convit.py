"""Gated positional attention against two softmaxes written out, the authors' numbers, and its limits: a
convolution and plain attention."""

import pytest
import torch

from logitkit.attention import GatedPositionalAttention, SoftmaxAttention, positional_attention


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def offsets(height, width):
    """(dx, dy, dx^2 + dy^2) from query i to key j."""
    r = torch.zeros(height * width, height * width, 3, dtype=torch.float64)
    for i in range(height * width):
        for j in range(height * width):
            dx, dy = j % width - i % width, j // width - i // width
            r[i, j] = torch.tensor([dx, dy, dx**2 + dy**2])
    return r


def test_two_softmaxes_and_a_gate():
    part, x = GatedPositionalAttention(8, 4, grid=(2, 3)).double(), wave(2, 6, 8)
    with torch.no_grad():
        part.gate.copy_(wave(4)), part.position.copy_(wave(4, 3, k=0.6))
    q, k, v = part.project(x, x, x)
    hidden = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden.fill_diagonal_(False)
    content = (q @ k.mT / 2**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    scores = torch.einsum("hc,ijc->hij", part.position, offsets(2, 3))
    positional = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    g = part.gates()[:, None, None]
    expected = (1 - g) * content + g * positional
    out, weights = part(x, attn_mask=hidden, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6).double())
    torch.testing.assert_close(out, part.merge(expected @ v))


def test_numbers_of_the_authors_code():
    """facebookresearch/convit, convit.py, GPSA, in float64 on sine waves; no biases but the output's."""
    part = GatedPositionalAttention(8, 4, grid=(3, 3), locality=0.7).double()
    signs = torch.tensor([[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]])
    torch.testing.assert_close(part.position.data, 0.7 * signs.double(), atol=1e-7, rtol=0)
    with torch.no_grad():
        part.position.copy_(0.7 * signs.double())
        part.in_proj.weight.copy_(torch.cat([wave(16, 8), wave(8, 8, k=1.1)])), part.in_proj.bias.zero_()
        part.out_proj.weight.copy_(wave(8, 8, k=1.2)), part.out_proj.bias.copy_(wave(8, k=1.3))
        part.gate.copy_(wave(4, k=1.4))
    x = wave(2, 9, 8, k=0.3).requires_grad_()
    out = part(x)[0]
    out.square().sum().backward()
    for found, expected in (
        (out[0, 5, :4], [1.057814386, -1.273558869, 0.601941043, 0.439071004]),
        (out[1, 8, -4:], [-0.940857253, 0.450239458, 0.487598718, -1.143793541]),
        (x.grad[1, 3, :4], [2.5829766, -13.2853034, 5.1503737, 9.9645273]),
        (part.nonlocality(x), [1.05842704, 1.35923812, 1.04795981, 1.18578799]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_at_first_it_can_be_a_3x3_convolution():
    part = GatedPositionalAttention(18, 9, grid=(4, 5), locality=50.0).double()
    with torch.no_grad():
        part.gate.fill_(40.0), part.out_proj.weight.copy_(torch.eye(18)), part.out_proj.bias.zero_()
    x = wave(1, 20, 18)
    out, image = part(x)[0].view(4, 5, 9, 2), x.view(4, 5, 9, 2)
    for h in range(9):
        dx, dy = h // 3 - 1, h % 3 - 1
        torch.testing.assert_close(out[1, 2, h], image[1 + dy, 2 + dx, h])


def test_without_the_gate_it_is_plain_attention():
    part, plain = GatedPositionalAttention(8, 4, grid=(2, 3)).double(), SoftmaxAttention(8, 4).double()
    with torch.no_grad():
        part.gate.fill_(-40.0)
    plain.load_state_dict(part.state_dict(), strict=False)
    torch.testing.assert_close(part(wave(2, 6, 8))[0], plain(wave(2, 6, 8))[0])


def test_positional_weights_do_not_depend_on_where():
    """Ratios of weights to two keys are those of the same offsets from another query."""
    eye = torch.eye(16).double().expand(1, 1, 16, 16)
    weights = positional_attention(eye, wave(1, 3, k=0.3), (4, 4))[0, 0].view(4, 4, 4, 4)
    ratio = weights[1, 1, 1:, 1:] / weights[1, 1, 1, 1]
    torch.testing.assert_close(weights[0, 0, :3, :3] / weights[0, 0, 0, 0], ratio)


def test_heads_that_are_no_square_are_warned_about():
    with pytest.warns(UserWarning, match="3 heads are no square: only 1"):
        GatedPositionalAttention(9, 3)
    with pytest.raises(ValueError, match="locality must be positive, got 0"):
        GatedPositionalAttention(8, 4, locality=0)
