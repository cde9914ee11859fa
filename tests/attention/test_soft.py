"""Softmax-free attention against the dense kernel, torch's inverse and the authors' numbers."""

import pytest
import torch

from logitkit.attention import SoftmaxFreeAttention, newton_pinv, softmax_free_attention


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(q):
    """exp(-|q_i - q_j|^2 / 2), by the loop over pairs that cdist is."""
    return (-torch.cdist(q, q, compute_mode="donot_use_mm_for_euclid_dist").square() / 2).exp()


def test_with_every_query_a_landmark_it_is_the_dense_kernel():
    q, v = 2 * draw(2, 3, 9, 8), draw(2, 3, 9, 5, seed=1)
    s = dense(q)
    found = softmax_free_attention(q, q, v, ridge=0.0)
    torch.testing.assert_close(found, s @ v, rtol=1e-6, atol=1e-6)
    d = s.sum(-1, keepdim=True).rsqrt()
    normed = d * s * d.mT
    found = softmax_free_attention(q, q, v, ridge=0.0, norm="full")
    torch.testing.assert_close(found, normed @ v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.linalg.matrix_norm(normed, 2), torch.ones(2, 3).double())


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_newton_is_the_inverse(ridge):
    a = dense(2 * draw(4, 6, 8))
    expected = torch.linalg.inv(a + ridge * torch.eye(6).double())
    torch.testing.assert_close(newton_pinv(a, ridge=ridge), expected, rtol=1e-6, atol=1e-6)


def test_newton_step_by_step():
    a = dense(draw(5, 8))
    ridged = a + 0.01 * torch.eye(5).double()
    z = 1.8 / a.sum(1).max() ** 2 * ridged
    torch.testing.assert_close(newton_pinv(a, iters=0), z)
    torch.testing.assert_close(newton_pinv(a, iters=1), 2 * z - z @ ridged @ z)


def test_gradients():
    a = dense(2 * draw(2, 3, 8)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: newton_pinv(a + a.mT, iters=30), (a,))
    q, few, v = (2 * draw(1, n, 4, seed=n).requires_grad_() for n in (5, 3, 5))
    for norm in (None, "landmark", "full"):
        assert torch.autograd.gradcheck(
            lambda *x, norm=norm: softmax_free_attention(*x, iters=40, norm=norm), (q, few, v)
        )


@pytest.mark.parametrize(
    ("norm", "first", "last", "gradient"),
    [
        (
            None,
            [-1.685508751, -4.011412979, -5.317884697, -3.499201608],
            [0.274256489, 0.821078888, -0.781393918, 0.014765427],
            [335.820413, -446.412541, 98.813685, 340.642613],
        ),
        (
            "landmark",
            [-1.675894937, -3.036753353, -3.778916695, -2.028681603],
            [-0.830934683, -0.267001674, -1.404992703, 0.11204498],
            None,
        ),
    ],
)
def test_numbers_of_the_authors_code(norm, first, last, gradient):
    """fudan-zvg/SOFT, models/softmax_free_transformer.py: SoftmaxFreeAttention, and with the kernel of its
    normalised form; in float64 on sine waves, the gradient with SOFT/kernel/inverse.py's."""
    heads = 2 if norm is None else 1  # its start is one for all heads
    part = SoftmaxFreeAttention(8, heads, grid=(4, 4), norm=norm).double()
    norm_layer = part.landmark_norm
    theirs = [part.squares.weight, norm_layer.weight, norm_layer.bias, part.conv.weight]
    with torch.no_grad():
        part.in_proj.weight.copy_(torch.cat([wave(8, 8), wave(8, 8, k=1.2)]))
        part.in_proj.bias.copy_(torch.cat([wave(8, k=1.1), wave(8, k=1.3)]))
        for i, p in enumerate([*theirs, part.out_proj.weight, part.out_proj.bias], start=4):
            p.copy_(wave(*p.shape, k=1 + 0.1 * i))
    x = wave(1, 16, 8, k=0.3).requires_grad_()
    out = part(x)[0]
    out.square().sum().backward()
    found = [(out[0, 5, :4], first), (out[0, 15, -4:], last)]
    found += [(x.grad[0, 3, :4], gradient)] if gradient else []
    for ours, expected in found:
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_ratio_of_1_needs_no_inverse():
    part, x = SoftmaxFreeAttention(8, 2, grid=(2, 3)).double(), draw(2, 6, 8)
    assert part.ratio == 1
    q, _, v = part.project(x, x, x)
    torch.testing.assert_close(part.attend(q, q, v, None, None), dense(part.landmarks(q)) @ v)
    part.norm = "full"
    s = dense(part.landmarks(q))
    d = s.sum(-1).rsqrt()
    expected = torch.einsum("bhi,bhij,bhj,bhjc->bhic", d, s, d, v)
    torch.testing.assert_close(part.attend(q, q, v, None, None), expected)


def test_each_head_has_one_kernel_for_its_values():
    part, x = SoftmaxFreeAttention(4, 2, grid=(2, 2)).double(), draw(1, 4, 4)
    q, _, v = part.project(x, x, x)
    near = torch.zeros_like(v)
    for i in range(4):
        for j in range(4):
            down, right = j // 2 - i // 2 + 1, j % 2 - i % 2 + 1
            near[:, :, i] += part.conv.weight[:, 0, down, right][:, None] * v[:, :, j]
    mixed = part.attend(q, q, v, None, None)
    torch.testing.assert_close(part(x)[0], part.merge(mixed + near))


def test_refusals():
    with pytest.raises(ValueError, match=r"ratio must divide the sides of the grid, got 2 and \(2, 3\)"):
        SoftmaxFreeAttention(8, 2, grid=(2, 3), ratio=2)
    with pytest.raises(ValueError, match="ratio of 2 does not divide a grid of 3x3"):
        SoftmaxFreeAttention(8, 2, ratio=2)(torch.randn(1, 9, 8))
    with pytest.raises(ValueError, match="norm must be"):
        SoftmaxFreeAttention(8, 2, norm="row")
    with pytest.raises(ValueError, match="conv_size must be an odd"):
        SoftmaxFreeAttention(8, 2, conv_size=2)
