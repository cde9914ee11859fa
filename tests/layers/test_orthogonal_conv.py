"""Orthogonal convolutions: the penalty against the matrix of the convolution, existence, singular values."""

import pytest
import torch
from torch import nn

from logitkit.layers import (
    OrthogonalConv2d,
    conv_matrix,
    conv_singular_values,
    isometry_report,
    orthogonal_conv_exists,
    orthogonal_conv_loss,
    orthogonal_kernel,
    orthogonality,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(kernel, n, stride):
    """The matrix entry by entry."""
    out, channels, size = kernel.shape[:3]
    side = stride * n
    matrix = torch.zeros(out, n, n, channels, side, side, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for p in range(size):
                for q in range(size):
                    row, column = (stride * i + p - size // 2) % side, (stride * j + q - size // 2) % side
                    matrix[:, i, j, :, row, column] += kernel[:, :, p, q]
    return matrix.view(out * n * n, -1)


@pytest.mark.parametrize(("size", "stride", "n"), [(3, 1, 4), (3, 2, 3), (5, 2, 4), (1, 3, 2)])
def test_matrix_and_singular_values(size, stride, n):
    kernel = draw(3, 2, size, size)
    matrix = conv_matrix(kernel, n, stride)
    torch.testing.assert_close(matrix, by_hand(kernel, n, stride))
    found = conv_singular_values(kernel, n, stride).flatten().sort(descending=True).values
    torch.testing.assert_close(found, torch.linalg.svdvals(matrix)[: len(found)])
    report = isometry_report(kernel, stride, (n,))
    assert report.largest[0] == pytest.approx(found[0].item())
    assert report.error[0] == pytest.approx((found - 1).abs().max().item())


@pytest.mark.parametrize("shape", [(2, 3), (7, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("d", [1, 2])
def test_penalty_is_the_distance_of_the_matrix(shape, stride, d):
    kernel, n = draw(*shape, *(3,) * d), 5
    a = conv_matrix(kernel, n, stride)
    gram = a @ a.T if shape[0] <= shape[1] * stride**d else a.T @ a
    expected = (gram - torch.eye(len(gram))).square().sum()
    torch.testing.assert_close(n**d * orthogonal_conv_loss(kernel, stride), expected, rtol=1e-10, atol=0)


def test_constructed_kernels():
    torch.manual_seed(0)
    tried = 0
    for out in (1, 2, 5, 9):
        for channels in (1, 2, 4):
            for size in (1, 3):
                for stride in (1, 2, 3):
                    if orthogonal_conv_exists(out, channels, size, stride):
                        kernel = orthogonal_kernel(out, channels, size, stride).double()
                        assert abs(orthogonal_conv_loss(kernel, stride).item()) < 1e-10  # drawn in float32
                        tried += 1
                    else:
                        with pytest.raises(ValueError, match="is orthogonal at stride"):
                            orthogonal_kernel(out, channels, size, stride)
    assert tried == 58  # all but 14 of the 24 with k = 1 below the stride


@pytest.mark.parametrize(("out", "channels", "bound"), [(7, 2, 7 - 2), (9, 2, 2 * (4 - 1))])
def test_without_existence_the_penalty_has_a_bound(out, channels, bound):
    kernel = draw(out, channels, 1, 1).requires_grad_()
    optimizer = torch.optim.LBFGS([kernel], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def value():
        optimizer.zero_grad()
        loss = orthogonal_conv_loss(kernel, 2)
        loss.backward()
        return loss

    optimizer.step(value)
    assert orthogonal_conv_loss(kernel, 2).item() == pytest.approx(bound, abs=1e-6)


def test_gradient():
    kernel = draw(2, 3, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: orthogonal_conv_loss(k, 2), (kernel,))


def test_layer():
    torch.manual_seed(0)
    layer, x = OrthogonalConv2d(2, 3, 3, 2, bias=False).double(), draw(4, 2, 8, 8)
    layer.weight.data += 0.1 * draw(3, 2, 3, 3)
    torch.testing.assert_close(layer(x).flatten(1), x.flatten(1) @ conv_matrix(layer.weight, 4, 2).T)
    model = nn.Sequential(layer, OrthogonalConv2d(3, 3, 5))
    assert orthogonality(model).item() == pytest.approx(layer.penalty().item(), abs=1e-5)
    widening = OrthogonalConv2d(2, 8, 3, bias=False).double()
    torch.testing.assert_close(widening(x).norm(), x.norm(), rtol=1e-5, atol=0)


def test_bad_input():
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        OrthogonalConv2d(2, 2, 4)
    with pytest.raises(ValueError, match=r"with an odd k, got \(2, 2, 3, 5\)"):
        orthogonal_conv_loss(draw(2, 2, 3, 5))
    with pytest.raises(ValueError, match=r"at least as long, got 1 \* 2"):
        conv_singular_values(draw(2, 2, 3, 3), 2)
    with pytest.raises(ValueError, match="got 0 in Linear"):
        orthogonality(nn.Linear(2, 2))
