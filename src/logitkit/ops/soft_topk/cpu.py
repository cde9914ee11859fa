"""Newton's method for t, row by row, each row read from memory once."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.kernels import EXACT, exp, exp64, inner, kernel
from logitkit.ops.soft_topk import reference

# Numbers added in the scores' own precision before they join a float64 sum.
BLOCK = 4096
OUT_OF_RANGE, NOT_NUMBERS = 1, 2


@inner()
def _moments(row):
    """How many scores are finite, their mean and standard deviation, and whether none is NaN or +inf."""
    count = 0
    bad = 0
    total = 0.0
    square = 0.0
    for i in range(row.size):
        finite = row[i] > -np.inf
        bad += not row[i] < np.inf
        count += finite
        x = np.float64(row[i]) if finite else 0.0
        total += x
        square += x * x
    mean = total / max(count, 1)
    return count, mean, np.sqrt(max(square / max(count, 1) - mean * mean, 0.0)), bad == 0


@inner(EXACT)
def _sigmoid(x, scale, high, low):
    # t comes in two pieces, so that a score near the threshold keeps its digits.
    return 1 / (1 + exp(-scale * ((x + high) + low)))


@inner()
def _sums(block, scale, high, low):
    """Sum of y and of y (1 - y) over a block."""
    total = scale * 0
    slope = scale * 0
    for i in range(block.size):
        y = _sigmoid(block[i], scale, high, low)
        total += y
        slope += y * (1 - y)
    return total, slope


@inner(EXACT)
def _split(row, t):
    """t as the sum of two numbers of the row's dtype."""
    pieces = np.empty(2, row.dtype)
    pieces[0] = t
    pieces[1] = t - np.float64(pieces[0])
    return pieces[0], pieces[1]


@inner()
def _row_sums(row, scale, t):
    high, low = _split(row, t)
    total = 0.0
    slope = 0.0
    for b in range((row.size + BLOCK - 1) // BLOCK):
        y, v = _sums(row[b * BLOCK : min(row.size, (b + 1) * BLOCK)], scale, high, low)
        total += y
        slope += v
    return total, slope


@inner()
def _exact_sums(row, alpha, t):
    total = 0.0
    slope = 0.0
    for i in range(row.size):
        y = 1 / (1 + exp64(-alpha * (np.float64(row[i]) + t)))
        total += y
        slope += y * (1 - y)
    return total, slope


@inner()
def _newton(total, slope, k, count, alpha):
    """The step in t. The sum, or what it lacks of all, is nearly exponential in t where it is small, so the
    logarithm of the smaller of the two is linearised."""
    if k <= count / 2:
        return -np.log(total / k) * total / (alpha * slope)
    rest = count - total
    return np.log(rest / (count - k)) * rest / (alpha * slope)


@inner()
def _search(row, k, scale):
    """t with sum sigmoid(scale (row + t)) = k, and a status."""
    count, mean, deviation, numbers = _moments(row)
    if not numbers:
        return 0.0, NOT_NUMBERS
    if not k < count:
        return 0.0, OUT_OF_RANGE
    alpha = np.float64(scale)
    # No number is further from the mean than this (Samuelson), so t lies in between.
    spread = deviation * np.sqrt(float(count)) + 1e-6 * abs(mean)
    below = -mean - spread - (np.log(count / k) + 1) / alpha
    above = -mean + spread + (np.log(count / (count - k)) + 1) / alpha
    # A logistic distribution of the same mean and deviation has its quantile here.
    t = 0.55 * deviation * np.log(k / (count - k)) - mean
    for _ in range(200):
        total, slope = _row_sums(row, scale, t)
        if total == k:
            return t, 0
        if total < k:
            below = t
        else:
            above = t
        new = np.nan
        if slope > 0 and 0 < total < count:
            new = t + _newton(total, slope, k, count, alpha)
        if not below < new < above:
            new = (below + above) / 2
        close = alpha * abs(new - t) < 1e-3 or above - below <= 1e-15 * abs(t)
        t = new
        if close:
            break
    # The last step is free of the scores' own rounding.
    total, slope = _exact_sums(row, alpha, t)
    if slope > 0 and 0 < total < count:
        step = _newton(total, slope, k, count, alpha)
        if alpha * abs(step) < 1:
            t += step
    return t, 0


@kernel()
def _solve(s, k, scale, t, status, y):
    """t of each row, and its weights if y has rows to take them."""
    for r in numba.prange(s.shape[0]):
        row = s[r]
        found, status[r] = _search(row, k[r], scale)
        t[r] = found
        if y.shape[0] > 0:
            high, low = _split(row, found)
            out = y[r]
            for i in range(row.size):
                out[i] = _sigmoid(row[i], scale, high, low)


@kernel()
def _gradient(y, g, scale, out):
    """out = scale v (g - sum(v g) / sum(v)) with v = y (1 - y)."""
    for r in numba.prange(y.shape[0]):
        row = y[r]
        grad = g[r]
        total = 0.0
        weighted = 0.0
        for i in range(row.size):
            v = np.float64(row[i]) * (1 - np.float64(row[i]))
            total += v
            weighted += v * np.float64(grad[i])
        mean = weighted / total if total > 0 else 0.0
        o = out[r]
        for i in range(row.size):
            o[i] = scale * (row[i] * (1 - row[i])) * (grad[i] - mean)


@kernel()
def _threshold_gradient(s, t, g, scale, out):
    """out = -g v / sum(v)."""
    for r in numba.prange(s.shape[0]):
        row = s[r]
        o = out[r]
        high, low = _split(row, t[r])
        total = 0.0
        for i in range(row.size):
            y = _sigmoid(row[i], scale, high, low)
            o[i] = y * (1 - y)
            total += np.float64(o[i])
        factor = -np.float64(g[r]) / total if total > 0 else 0.0
        for i in range(row.size):
            o[i] = o[i] * factor


def _run(s: Tensor, k: Tensor, alpha: float, y: np.ndarray) -> np.ndarray:
    x = s.numpy()
    t, status = np.empty(len(x)), np.zeros(len(x), np.int64)
    _solve(x, k.numpy(), x.dtype.type(alpha), t, status, y)
    if status.any():
        reference.check_values(s, k)
    return t


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, k: Tensor, alpha: float) -> Tensor:
        y = torch.empty_like(s)
        _run(s, k, alpha, y.numpy())
        ctx.save_for_backward(y)
        ctx.alpha = alpha
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivatives("soft_topk")
        (y,) = ctx.saved_tensors
        out = torch.empty_like(y)
        x = y.numpy()
        _gradient(x, g.contiguous().numpy(), x.dtype.type(ctx.alpha), out.numpy())
        return out, None, None


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, k: Tensor, alpha: float) -> Tensor:
        t = _run(s, k, alpha, np.empty((0, 0), s.numpy().dtype))
        ctx.save_for_backward(s)
        ctx.t, ctx.alpha = t, alpha
        return torch.from_numpy(t).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivatives("soft_topk")
        (s,) = ctx.saved_tensors
        out = torch.empty_like(s)
        x = s.numpy()
        _threshold_gradient(x, ctx.t, g.contiguous().numpy(), x.dtype.type(ctx.alpha), out.numpy())
        return out, None, None


def soft_topk(s: Float[Tensor, "rows n"], k: Float[Tensor, " rows"], alpha: float) -> Float[Tensor, "rows n"]:
    return _SoftTopK.apply(s, k, alpha)


def threshold(s: Float[Tensor, "rows n"], k: Float[Tensor, " rows"], alpha: float) -> Float[Tensor, " rows"]:
    return _Threshold.apply(s, k, alpha)
