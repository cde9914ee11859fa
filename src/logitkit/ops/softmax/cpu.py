"""Softmax of long float32 rows, all threads on one row.

The two-pass form (Dukhan and Ablavatski, arXiv:2001.04438) writes exp(x) = m 2^n with m in [0.7, 1.42]. Pairs
(m, n) add up without overflow whatever x is, so no pass for the maximum is needed: one pass sums, one writes.
Blocks of 2,048 are summed in float32 against an exponent that seldom changes, and merge in float64. The
online form (one pass for maximum and sum together, then one that writes) and the three-pass form are here to
be compared with.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.kernels import EXACT, exp, exp_parts, f32, i32, inner, kernel, largest, pow2
from logitkit.ops.softmax import reference

# Elements in one turn of the parallel loop, and in one block. Blocks of 4,096 err by 1.2e-6 with AVX2: half
# the lanes of AVX-512, so that twice as many small numbers are added to a large one.
TURN, BLOCK = 1 << 16, 1 << 11
# Beyond this an exponent no longer fits float32's rounding; rows that reach it go to the reference.
LIMIT = f32(1.4e6)
REACH = 2_000_000
# A block whose sum exceeds this is summed again against its own largest exponent.
TOO_LARGE = f32(2.0**100)


@inner(EXACT)
def _clamp(x):
    x = -LIMIT if x < -LIMIT else x
    return LIMIT if x > LIMIT else x


@inner()
def _sum_over(x, top):
    """sum exp(x) 2^-top over one block; inf if an exponent is 128 or more above top."""
    s = f32(0)
    for i in range(x.size):
        m, n = exp_parts(_clamp(x[i]))
        e = i32(n - top)
        s += m * pow2(i32(128) if e > i32(128) else e)
    return s


@inner()
def _largest_exponent(x):
    top = i32(-(2**30))
    for i in range(x.size):
        _, n = exp_parts(_clamp(x[i]))
        top = max(top, n)
    return top


@inner(EXACT)
def _place(turn, columns):
    """Row, first and last column of the piece that a turn works on."""
    turns = (columns + TURN - 1) // TURN
    start = turn % turns * TURN
    return turn // turns, start, min(columns, start + TURN)


@kernel()
def _sums(x, s, n):
    """Per turn of each row, the pair (s, n): sum exp(x) = s 2^n."""
    rows, columns = x.shape
    turns = s.shape[1]
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        part = x[r, start:stop]
        total = 0.0
        top = _largest_exponent(part[: min(part.size, BLOCK)])
        for b in range((part.size + BLOCK - 1) // BLOCK):
            block = part[b * BLOCK : min(part.size, (b + 1) * BLOCK)]
            m = _sum_over(block, top)
            if not m < TOO_LARGE:
                higher = _largest_exponent(block)
                total = total * pow2(top - higher)
                top = higher
                m = _sum_over(block, top)
            total += m
        s[r, start // TURN] = total
        n[r, start // TURN] = top


@kernel(EXACT)
def _write(x, scale, n, y):
    """y = exp(x) scale 2^-n, from the end of x, which the caches still hold."""
    rows, columns = x.shape
    turns = (columns + TURN - 1) // TURN
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(rows * turns - 1 - turn, columns)
        a = x[r, start:stop]
        b = y[r, start:stop]
        k = scale[r]
        top = n[r]
        for i in range(a.size):
            m, e = exp_parts(_clamp(a[i]))
            b[i] = m * k * pow2(e - top)


@kernel()
def _maxima(x, top):
    rows, columns = x.shape
    turns = top.shape[1]
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        top[r, start // TURN] = largest(x[r, start:stop])


@kernel()
def _sums_below(x, top, s):
    """Per turn, sum exp(x - top of the row)."""
    rows, columns = x.shape
    turns = s.shape[1]
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        part = x[r, start:stop]
        total = 0.0
        for b in range((part.size + BLOCK - 1) // BLOCK):
            block = part[b * BLOCK : min(part.size, (b + 1) * BLOCK)]
            m = f32(0)
            for i in range(block.size):
                m += exp(block[i] - top[r])
            total += m
        s[r, start // TURN] = total


@kernel()
def _online(x, top, s):
    """Per turn, the maximum and sum exp(x - maximum), in one reading: the sum so far is rescaled block by
    block."""
    rows, columns = x.shape
    turns = s.shape[1]
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        part = x[r, start:stop]
        total = 0.0
        high = f32(-np.inf)
        for b in range((part.size + BLOCK - 1) // BLOCK):
            block = part[b * BLOCK : min(part.size, (b + 1) * BLOCK)]
            here = max(high, largest(block))
            m = f32(0)
            for i in range(block.size):
                m += exp(block[i] - here)
            total = total * exp(f32(high - here)) + m
            high = here
        top[r, start // TURN] = high
        s[r, start // TURN] = total


@kernel(EXACT)
def _write_below(x, top, scale, y):
    """y = exp(x - top) scale, from the end."""
    rows, columns = x.shape
    turns = (columns + TURN - 1) // TURN
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(rows * turns - 1 - turn, columns)
        a = x[r, start:stop]
        b = y[r, start:stop]
        k = scale[r]
        t = top[r]
        for i in range(a.size):
            b[i] = exp(a[i] - t) * k


@kernel()
def _dots(a, b, s):
    """Per turn, sum a b."""
    rows, columns = a.shape
    turns = s.shape[1]
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        p = a[r, start:stop]
        q = b[r, start:stop]
        total = 0.0
        for i in range(p.size):
            total += np.float64(p[i]) * np.float64(q[i])
        s[r, start // TURN] = total


@kernel(EXACT)
def _softmax_gradient(g, y, dot, out):
    """out = y (g - dot of the row)."""
    rows, columns = y.shape
    turns = (columns + TURN - 1) // TURN
    for turn in numba.prange(rows * turns):
        r, start, stop = _place(turn, columns)
        p = g[r, start:stop]
        q = y[r, start:stop]
        o = out[r, start:stop]
        k = f32(dot[r])
        for i in range(p.size):
            o[i] = q[i] * (p[i] - k)


def _turns(x: np.ndarray) -> tuple[int, int]:
    return len(x), -(-x.shape[1] // TURN)


def pairs(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s, n) of each row, with sum exp(x) = s 2^n and s in [0.5, 1). Raises OutOfReach for NaN, infinities
    and numbers beyond 1.38e6."""
    s, n = np.empty(_turns(x)), np.empty(_turns(x), np.int32)
    _sums(x, s, n)
    top = n.max(1)
    if not (abs(top) < REACH).all():
        raise OutOfReach
    s, power = np.frexp((s * np.exp2(n.astype(np.float64) - top[:, None])).sum(1))
    return s, top + power


class OutOfReach(Exception):
    """A row that the kernel leaves to the reference."""


def two_pass(x: np.ndarray, y: np.ndarray) -> None:
    """y = softmax of each row of x."""
    s, n = pairs(x)
    _write(x, (1 / s).astype(np.float32), n, y)


def online(x: np.ndarray, y: np.ndarray) -> None:
    """The same with maximum and sum in one reading."""
    top, s = np.empty(_turns(x), np.float32), np.empty(_turns(x))
    _online(x, top, s)
    high = top.max(1)
    s = (s * np.exp(top.astype(np.float64) - high[:, None])).sum(1)
    _write_below(x, high, (1 / s).astype(np.float32), y)


def three_pass(x: np.ndarray, y: np.ndarray) -> None:
    """The same with a reading of its own for the maximum."""
    top, s = np.empty(_turns(x), np.float32), np.empty(_turns(x))
    _maxima(x, top)
    high = top.max(1)
    _sums_below(x, high, s)
    _write_below(x, high, (1 / s.sum(1)).astype(np.float32), y)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        two_pass(x.numpy(), y.numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return y * (g - (g * y).sum(-1, keepdim=True))
        g, out = g.contiguous(), torch.empty_like(y)
        dots = np.empty(_turns(y.numpy()))
        _dots(g.numpy(), y.numpy(), dots)
        _softmax_gradient(g.numpy(), y.numpy(), dots.sum(1), out.numpy())
        return out


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s, n = pairs(x.numpy())
        ctx.save_for_backward(x)
        ctx.scale, ctx.n = (1 / s).astype(np.float32), n
        return torch.from_numpy(np.log(s) + n * math.log(2.0)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return g[:, None] * torch.softmax(x, -1)
        out = torch.empty_like(x)
        _write(x.numpy(), ctx.scale * g.numpy(), ctx.n, out.numpy())
        return out


def softmax(x: Float[Tensor, "rows columns"], out: Float[Tensor, "rows columns"] | None) -> Tensor:
    try:
        if out is None:
            return _Softmax.apply(x)
        two_pass(x.numpy(), out.numpy())
    except OutOfReach:
        return reference.softmax(x, out)
    return out


def logsumexp(x: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    try:
        return _LogSumExp.apply(x)
    except OutOfReach:
        return reference.logsumexp(x)


def log_softmax(x: Float[Tensor, "rows columns"], out: Float[Tensor, "rows columns"] | None) -> Tensor:
    if out is None:
        return x - logsumexp(x)[:, None]
    return torch.sub(x, logsumexp(x)[:, None], out=out)
