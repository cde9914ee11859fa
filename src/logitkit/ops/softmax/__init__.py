"""Softmax, log-softmax and log-sum-exp, fast and exact on single long rows."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import implementation
from logitkit.ops.softmax import reference

# From this many elements on the kernel is faster than torch, on one row or on fewer rows than threads.
LONG = 1 << 18


def softmax(
    x: Float[Tensor, "..."], dim: int = -1, *, out: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """exp(x_i) / sum_j exp(x_j) along `dim`, as `torch.softmax`, which it calls wherever that is as fast.

    Pays: for float32 on a CPU with one row, or fewer rows than threads, and at least 2^18 numbers, contiguous
    along the last axis: torch runs a row on one thread and sums it in float32. There the two-pass form of
    Dukhan and Ablavatski (arXiv:2001.04438) uses every thread, reads x twice, and sums in float64 from blocks
    of 2,048 numbers. Pass `out` to reuse memory; fresh memory of this size can cost more than the arithmetic.

    Error: at most 1e-6 of each weight (torch: 1e-3 on a row of 2^24). A row with NaN or infinities, or
    numbers beyond a million in size, is torch's.

    Raises: ValueError for integers, for an `out` that does not match, or `out` with an x that needs
    gradients.
    """
    _check(x, out)
    return _over_rows(x, dim, out, "softmax")


def log_softmax(
    x: Float[Tensor, "..."], dim: int = -1, *, out: Float[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """x_i - log sum_j exp(x_j) along `dim`, as `torch.log_softmax`; see `softmax`. Absolute error at most
    1e-6 of the largest of |x| and 1."""
    _check(x, out)
    return _over_rows(x, dim, out, "log_softmax")


def logsumexp(x: Float[Tensor, "..."], dim: int = -1, keepdim: bool = False) -> Float[Tensor, "..."]:
    """log sum_j exp(x_j) along `dim`, as `torch.logsumexp`; see `softmax`. It reads x once and writes
    nothing."""
    _check(x, None)
    if dim % x.ndim != x.ndim - 1:
        return torch.logsumexp(x, dim, keepdim)
    y = _kernel(x, None).logsumexp(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], 1) if keepdim else y.reshape(x.shape[:-1])


def _over_rows(x: Tensor, dim: int, out: Tensor | None, name: str) -> Tensor:
    if dim % max(x.ndim, 1) != x.ndim - 1:
        function = getattr(torch, name)
        return function(x, dim) if out is None else function(x, dim, out=out)
    shape = (-1, x.shape[-1])
    y = getattr(_kernel(x, out), name)(x.reshape(shape), None if out is None else out.view(shape))
    return y.view(x.shape)


def _kernel(x: Tensor, out: Tensor | None) -> ModuleType:
    cpu: bool | str
    if x.dtype != torch.float32:
        cpu = f"it takes float32, not {x.dtype}"
    elif not x.is_contiguous() or (out is not None and not out.is_contiguous()):
        cpu = "it takes contiguous tensors"
    elif x.numel() == 0:
        cpu = "it takes at least one number"
    else:
        cpu = x.numel() >= LONG and x.shape[-1] * max(2, torch.get_num_threads()) > x.numel()
    return implementation(reference, x, cpu=cpu)


def _check(x: Tensor, out: Tensor | None) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}.")
    if x.ndim == 0:
        raise ValueError("x must have at least one axis, got a single number.")
    if out is None:
        return
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"out must have shape {tuple(x.shape)} and dtype {x.dtype},"
            f" got {tuple(out.shape)} and {out.dtype}."
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("out cannot be used with an x that needs gradients; detach x or leave out.")
