"""Orthogonal convolutions: when they exist, how far a kernel is from one, and a layer that stays near one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_maps, check_whole
from logitkit.registry import Choice, Real, part

Kernel = Float[Tensor, "out in *size"]
_CONV = {1: F.conv1d, 2: F.conv2d}


def orthogonal_conv_loss(kernel: Kernel, stride: int = 1) -> Float[Tensor, ""]:
    """How far the convolution with circular padding is from orthogonal, for kernels in one or two dimensions
    and of odd size; 0 exactly where it is. See `OrthogonalConv2d`."""
    out, channels, size, d = _sizes(kernel, stride)
    reach = (size - 1) // stride
    gram = _CONV[d](kernel, kernel, padding=reach * stride, stride=stride)
    centre: Any = (..., *(reach,) * d)
    missing = torch.zeros_like(gram)
    missing[centre] = torch.eye(out, dtype=gram.dtype, device=gram.device)
    return (gram - missing).square().sum() - max(0, out - channels * stride**d)


def orthogonal_conv_exists(out: int, channels: int, size: int, stride: int = 1, d: int = 2) -> bool:
    """Whether a kernel of this shape can be orthogonal, on signals that are large enough: where rows are to
    be orthonormal (out <= channels * stride^d) iff out <= channels * size^d, else iff stride <= size."""
    check_whole(out=out, channels=channels, size=size, stride=stride, d=d)
    if out <= channels * stride**d:
        return out <= channels * size**d
    return stride <= size


def orthogonal_kernel(out: int, channels: int, size: int, stride: int = 1, d: int = 2) -> Kernel:
    """A random orthogonal kernel: a semi-orthogonal matrix on a block of min(size, stride)^d of its taps.

    Raises: ValueError where `orthogonal_conv_exists` says that there is none, or for an even size.
    """
    if not orthogonal_conv_exists(out, channels, size, stride, d):
        raise ValueError(
            f"no kernel from {channels} to {out} channels of size {size} is orthogonal at stride {stride}."
        )
    _sizes(torch.empty(out, channels, *(size,) * d), stride)
    side = min(size, stride)
    start = (size - side + 1) // 2
    matrix = nn.init.orthogonal_(torch.empty(out, channels * side**d))
    kernel = torch.zeros(out, channels, *(size,) * d)
    block: Any = (..., *(slice(start, start + side),) * d)
    kernel[block] = matrix.view(out, channels, *(side,) * d)
    return kernel


def conv_matrix(kernel: Kernel, n: int, stride: int = 1) -> Float[Tensor, "rows columns"]:
    """The matrix of the convolution from (in, stride n, ..) to (out, n, ..) with circular padding, both
    flattened."""
    _, channels, size, d = _sizes(kernel, stride)
    side = stride * n
    images = torch.eye(channels * side**d, dtype=kernel.dtype, device=kernel.device)
    images = images.view(-1, channels, *(side,) * d)
    return _circular(images, kernel, stride, size, d).flatten(1).T


def conv_singular_values(kernel: Kernel, n: int, stride: int = 1) -> Float[Tensor, "frequencies values"]:
    """The singular values of `conv_matrix`, min(out, in stride^d) for each of n^d frequencies, from the
    Fourier transform of the kernel; in float64."""
    *_, size, d = _sizes(kernel, stride)
    side = stride * n
    if size > side:
        raise ValueError(f"a kernel of size {size} needs signals at least as long, got {stride} * {n}.")
    axes = tuple(range(2, 2 + d))
    symbol = torch.fft.fftn(kernel.double(), s=(side,) * d, dim=axes)
    for axis in axes:  # each frequency of the output gathers those that the stride folds onto it
        symbol = symbol.unflatten(2 * axis - 2, (stride, n))
    folded = symbol.movedim([2 * axis - 2 for axis in axes], tuple(axes)).flatten(1, 1 + d)
    matrices = folded.flatten(2).movedim(2, 0) / stride ** (d / 2)
    return torch.linalg.svdvals(matrices)


class Isometry(NamedTuple):
    """The least and the largest singular value of a convolution on signals of each size."""

    sizes: tuple[int, ...]
    least: tuple[float, ...]
    largest: tuple[float, ...]

    @property
    def error(self) -> tuple[float, ...]:
        """The largest distance of a singular value from 1."""
        return tuple(max(1 - a, b - 1) for a, b in zip(self.least, self.largest, strict=True))


@torch.no_grad()
def isometry_report(kernel: Kernel, stride: int = 1, sizes: tuple[int, ...] = (16, 64)) -> Isometry:
    """How much the convolution may shrink and stretch signals of stride * n entries a side, n in `sizes`."""
    values = [conv_singular_values(kernel, n, stride) for n in sizes]
    return Isometry(sizes, tuple(v.min().item() for v in values), tuple(v.max().item() for v in values))


@part(
    "orthogonal_conv",
    "layers",
    title="Existence, Stability and Scalability of Orthogonal Convolutional Neural Networks",
    paper="arXiv:2108.05623",
    number=225,
    replaces="conv",
    search_space={"bias": Choice(True, False), "lam": Real(1e-3, 1.0, log=True)},
)
class OrthogonalConv2d(nn.Conv2d):
    """A convolution with circular padding that starts orthogonal, and stays near it when lam times its
    `penalty()` is added to the loss, as training from a recipe does: for deep networks without normalisation,
    and for known Lipschitz constants.

    Equation: L = |conv(K, K, padding=P, stride=S) - I|^2 - max(0, M - C S^2), P = floor((k - 1) / S) S, I the
    identity at the centre and 0 elsewhere, M and C the channels out and in. With A the matrix of the
    convolution on signals of S N x S N pixels, N^2 L is |A A^T - 1|^2 where M <= C S^2, and |A^T A - 1|^2
    otherwise, whatever N is from 2k - 1 on.

    Shapes: x (batch, in_channels, h, w) -> (batch, out_channels, h / stride, w / stride), rounded up; the
    penalty is a scalar. `orthogonality(model)` sums it over a model's layers.

    Defaults: as `nn.Conv2d`; the start is a random orthogonal kernel where one exists, and otherwise torch's.
    lam = 0: nothing keeps it there.

    Raises: ValueError for an even kernel, a negative lam, inputs of another shape or dtype, or an empty
    batch.

    Source: Achour, Malgouyres, Mamalet, JMLR 2022, arXiv:2108.05623, definition 1 and theorems 1 to 3.

    Not for: images whose opposite borders must not meet. With zeros around them, hardly any convolution is
    orthogonal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
        lam: float = 0.0,
    ) -> None:
        check_whole(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride
        )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        if not lam >= 0:
            raise ValueError(f"lam must not be negative, got {lam}.")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            bias=bias,
            padding_mode="circular",
        )
        self.lam = lam
        if orthogonal_conv_exists(out_channels, in_channels, kernel_size, stride):
            with torch.no_grad():
                self.weight.copy_(orthogonal_kernel(out_channels, in_channels, kernel_size, stride))

    def penalty(self) -> Float[Tensor, ""]:
        """L of the kernel."""
        return orthogonal_conv_loss(self.weight, self.stride[0])

    def forward(self, input: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out h2 w2"]:
        return super().forward(check_maps(input, self.in_channels))


def orthogonality(model: nn.Module) -> Tensor:
    """The sum of the penalties of a model's orthogonal convolutions.

    Raises: ValueError for a model without any.
    """
    found = [layer.penalty() for layer in model.modules() if isinstance(layer, OrthogonalConv2d)]
    if not found:
        raise ValueError(f"expected a model with orthogonal convolutions, got 0 in {type(model).__name__}.")
    return torch.stack(found).sum()


def _sizes(kernel: Tensor, stride: int) -> tuple[int, int, int, int]:
    """Channels out and in, size, and number of dimensions of a kernel that is fit for all of this."""
    check_whole(stride=stride)
    if kernel.ndim not in (3, 4) or len(set(kernel.shape[2:])) != 1 or kernel.shape[2] % 2 == 0:
        raise ValueError(
            "kernel must have shape (out, in, k) or (out, in, k, k) with an odd k, got"
            f" {tuple(kernel.shape)}."
        )
    return kernel.shape[0], kernel.shape[1], kernel.shape[2], kernel.ndim - 2


def _circular(x: Tensor, kernel: Tensor, stride: int, size: int, d: int) -> Tensor:
    padding = [size // 2] * (2 * d)
    return _CONV[d](F.pad(x, padding, mode="circular"), kernel, stride=stride)
