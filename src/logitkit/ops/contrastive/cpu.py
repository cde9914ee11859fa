"""Rows in strips: one product for the similarities, one pass that turns a row into its loss and the loss's
derivatives, two products for the gradients. Nothing of a strip is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.gemm import fast_products
from logitkit.ops.kernels import EXACT, exp, inner, kernel, largest, smallest

# Numbers in a strip, unless that makes it lower than LEAST rows, or higher than MOST.
STRIP, LEAST, MOST = 2**20, 256, 512
# Distances below this share of the embeddings' own length are taken from differences, not from products.
NEAR = 0.1
# Positives up to which they are compared with all negatives one by one, rather than searched.
FEW = 32

f32 = np.float32
_NONE = f32(-3.0e38)  # less than any similarity
_CHUNK = 2048

# rows(strip, a, b, out): replace similarities of rows a..b by the derivatives of the loss; out[a:b] takes the
# loss and a second sum of each row.
Rows = Callable[[np.ndarray, int, int, np.ndarray], None]


def _strip_rows(rows: int, columns: int) -> int:
    return min(rows, max(LEAST, min(MOST, STRIP // max(columns, 1))))


class _Strips(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        n, m = len(x), len(y)
        need_x, need_y, need_bias, _ = ctx.needs_input_grad
        x, y = x.contiguous(), y.contiguous()
        gx = torch.empty_like(x) if need_x else None
        gy = torch.zeros_like(y) if need_y else None
        out = np.zeros((n, 2))
        step = _strip_rows(n, m)
        buffer = x.new_empty(step, m)
        with fast_products(), torch.autocast("cpu", enabled=False):
            for a in range(0, n, step):
                b = min(n, a + step)
                strip = buffer[: b - a]
                torch.mm(x[a:b], y.T, out=strip)
                rows(strip.numpy(), a, b, out)
                if gx is not None:
                    torch.mm(strip, y, out=gx[a:b])
                if gy is not None:
                    gy.addmm_(strip.T, x[a:b])
        loss, slope = out.sum(0)
        ctx.save_for_backward(gx, gy, x.new_tensor(slope) if need_bias else None)
        return x.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        no_second_derivatives("contrastive losses")
        return *(None if g is None else g * scale for g in ctx.saved_tensors), None


def _run(x: Tensor, y: Tensor, rows: Rows, bias: Tensor | None = None) -> Tensor:
    return _Strips.apply(x, y, bias, rows)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


@inner()
def _top(row, sign):
    """The largest of sign * row."""
    if row.size == 0:
        return _NONE
    return largest(row) if sign > f32(0) else -smallest(row)


@inner()
def _sum(row):
    total = 0.0
    for a in range(0, row.size, _CHUNK):
        part = row[a : a + _CHUNK]
        s = f32(0)
        for j in range(part.size):
            s += part[j]
        total += s
    return total


@inner()
def _exp(row, scale, shift):
    """row = exp(scale row - shift); its sum."""
    total = 0.0
    for a in range(0, row.size, _CHUNK):
        part = row[a : a + _CHUNK]
        s = f32(0)
        for j in range(part.size):
            e = exp(scale * part[j] - shift)
            part[j] = e
            s += e
        total += s
    return total


@inner()
def _times(row, factor):
    factor = f32(factor)
    for j in range(row.size):
        row[j] *= factor


@inner()
def _logistic(row, sign, shift, weight):
    """Sums of softplus(u) and of sigmoid(u), u = sign (row - shift); row = sign weight sigmoid(u)."""
    loss = 0.0
    slope = 0.0
    weight = sign * weight
    for a in range(0, row.size, 512):
        part = row[a : a + 512]
        above = f32(0)
        product = 1.0  # of at most 512 numbers in [1, 2]
        s = f32(0)
        for j in range(part.size):
            u = sign * (part[j] - shift)
            size = abs(u)
            e = exp(-size)
            p = (f32(1) if u > f32(0) else e) * (f32(1) / (f32(1) + e))
            part[j] = weight * p
            s += p
            above += f32(0.5) * (u + size)
            product *= 1.0 + np.float64(e)
        loss += above + math.log(product)
        slope += s
    return loss, slope


@kernel()
def _decoupled(strip, first, start, stop, own, weight, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        top = _NONE
        begin = 0
        for r in range(first[i], first[i + 1]):
            top = max(top, _top(row[begin : start[r]], f32(1)))
            begin = stop[r]
        top = max(top, _top(row[begin:], f32(1)))
        total = 0.0
        begin = 0
        for r in range(first[i], first[i + 1]):
            total += _exp(row[begin : start[r]], f32(1), top)
            begin = stop[r]
        total += _exp(row[begin:], f32(1), top)
        negatives = _NONE
        if total != 0:
            negatives = f32(np.float64(top) + math.log(total))
        loss = 0.0
        slope = 0.0
        for r in range(first[i], first[i + 1]):
            here = own[i] if start[r] <= own[i] < stop[r] else stop[r]
            some, share = _logistic(row[start[r] : here], f32(-1), negatives, weight[i])
            loss += some
            slope += share
            if here < stop[r]:
                row[here] = f32(0)
                some, share = _logistic(row[here + 1 : stop[r]], f32(-1), negatives, weight[i])
                loss += some
                slope += share
        factor = 0.0
        if total != 0:
            factor = weight[i] * slope / total
        begin = 0
        for r in range(first[i], first[i + 1]):
            _times(row[begin : start[r]], factor)
            begin = stop[r]
        _times(row[begin:], factor)
        out[i, 0] = weight[i] * loss


def decoupled(x, y, positives, weight):
    first, start, stop, own, w = _arrays(*positives, weight)

    def rows(s, a, b, out):
        _decoupled(s, first[a : b + 1], start, stop, own[a:b], w[a:b], out[a:b])

    return _run(x, y, rows)


@kernel()
def _supervised(strip, start, stop, own, weight, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        count = stop[i] - start[i] - 1
        if count == 0:
            row[:] = f32(0)
            continue
        before = row[: own[i]]
        after = row[own[i] + 1 :]
        # Relative to the mean positive the loss has nothing to cancel.
        mean = (_sum(row[start[i] : own[i]]) + _sum(row[own[i] + 1 : stop[i]])) / count
        top = max(_top(before, f32(1)), _top(after, f32(1)))
        total = _exp(before, f32(1), top) + _exp(after, f32(1), top)
        out[i, 0] = weight[i] * (math.log(total) + (np.float64(top) - mean))
        _times(before, weight[i] / total)
        _times(after, weight[i] / total)
        share = f32(weight[i] / count)
        for j in range(start[i], stop[i]):
            row[j] -= share
        row[own[i]] = f32(0)


def supervised(x, y, positives, weight):
    _, start, stop, own, w = _arrays(*positives, weight)

    def rows(s, a, b, out):
        _supervised(s, start[a:b], stop[a:b], own[a:b], w[a:b], out[a:b])

    return _run(x, y, rows)


@inner()
def _log1p_sum(left, right, scale, base):
    """log(1 + sum exp(scale (s - base))) / |scale| over two pieces of a row, which become its derivatives."""
    sign = f32(1) if scale > 0 else f32(-1)
    size = abs(scale)
    top = max(f32(0), size * (max(_top(left, sign), _top(right, sign)) - sign * base))
    shift = scale * base + top
    total = _exp(left, scale, shift) + _exp(right, scale, shift)
    one = math.exp(-np.float64(top))
    factor = sign / (one + total)
    _times(left, factor)
    _times(right, factor)
    if top == f32(0):
        return math.log1p(total) / size
    return (np.float64(top) + math.log(one + total)) / size


@kernel()
def _multi_similarity(strip, start, stop, own, alpha, beta, base, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        attract = _log1p_sum(row[start[i] : own[i]], row[own[i] + 1 : stop[i]], -alpha, base)
        repel = _log1p_sum(row[: start[i]], row[stop[i] :], beta, base)
        row[own[i]] = f32(0)
        out[i, 0] = attract + repel


def multi_similarity(x, y, positives, alpha, beta, base):
    _, start, stop, own = _arrays(*positives)

    def rows(s, a, b, out):
        _multi_similarity(
            s, start[a:b], stop[a:b], own[a:b], f32(alpha), f32(beta), f32(base), out[a:b]
        )  # fmt: skip

    return _run(x, y, rows)


@kernel()
def _sigmoid(strip, first, start, stop, bias, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        loss = 0.0
        slope = 0.0
        begin = 0
        for r in range(first[i], first[i + 1]):
            some, share = _logistic(row[begin : start[r]], f32(1), -bias, f32(1))
            loss += some
            slope += share
            some, share = _logistic(row[start[r] : stop[r]], f32(-1), -bias, f32(1))
            loss += some
            slope -= share
            begin = stop[r]
        some, share = _logistic(row[begin:], f32(1), -bias, f32(1))
        out[i, 0] = loss + some
        out[i, 1] = slope + share


def sigmoid(x, y, bias, positives):
    first, start, stop, _ = _arrays(*positives)
    b0 = f32(bias.item())

    def rows(s, a, b, out):
        _sigmoid(s, first[a : b + 1], start, stop, b0, out[a:b])

    return _run(x, y, rows, bias)


@inner()
def _weigh(row, sharpness, top):
    """Sums of e and of e (s - top), e = exp(2 sharpness (s - top))."""
    total = 0.0
    moment = 0.0
    for a in range(0, row.size, _CHUNK):
        part = row[a : a + _CHUNK]
        s0 = f32(0)
        s1 = f32(0)
        for j in range(part.size):
            s = part[j] - top
            e = exp(sharpness * s)
            s0 += e
            s1 += e * s
        total += s0
        moment += s1
    return total, moment


@inner()
def _weigh_slope(row, sharpness, top, mean, factor):
    for j in range(row.size):
        s = row[j] - top
        row[j] = factor * exp(sharpness * s) * (f32(1) + sharpness * (s - mean))


@kernel()
def _repulsion(strip, own, sharpness, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        before = row[: own[i]]
        after = row[own[i] + 1 :]
        top = max(_top(before, f32(1)), _top(after, f32(1)))
        total, moment = _weigh(before, sharpness, top)
        more, moment_more = _weigh(after, sharpness, top)
        row[own[i]] = f32(0)
        if total + more == 0:
            continue
        mean = (moment + moment_more) / (total + more)
        _weigh_slope(before, sharpness, top, f32(mean), f32(2 / (total + more)))
        _weigh_slope(after, sharpness, top, f32(mean), f32(2 / (total + more)))
        out[i, 0] = 2 * (np.float64(top) + mean) - 2


def repulsion(x, y, own, sharpness):
    (column,) = _arrays(own)

    def rows(s, a, b, out):
        _repulsion(s, column[a:b], f32(2 * sharpness), out[a:b])

    return _run(x, y, rows)


@inner(EXACT)
def _distances(row, x, y, square, squares):
    """row = |x - y_j|, given the products of x and y_j. Where that loses digits, from the differences."""
    near = 0
    for j in range(row.size):
        limit = f32(0.5 * NEAR * NEAR) * (square + squares[j])
        d = square + squares[j] - f32(2) * row[j]
        near += 1 if d < limit else 0
        row[j] = d
    if near > 0:
        for j in range(row.size):
            if row[j] < f32(0.5 * NEAR * NEAR) * (square + squares[j]):
                d = f32(0)
                for k in range(x.size):
                    d += (x[k] - y[j, k]) * (x[k] - y[j, k])
                row[j] = d
    for j in range(row.size):
        row[j] = np.sqrt(row[j])
    return near


@inner()
def _closer(row, threshold, active):
    """How many of row are below the threshold and by how much in all; `active` counts them."""
    loss = 0.0
    count = 0.0
    for a in range(0, row.size, _CHUNK):
        part = row[a : a + _CHUNK]
        marks = active[a : a + _CHUNK]
        s = f32(0)
        c = f32(0)
        for j in range(part.size):
            hit = f32(1) if part[j] < threshold else f32(0)
            gap = threshold - part[j]
            s += f32(0) if gap <= f32(0) else gap  # NaN stays
            c += hit
            marks[j] += hit
        loss += s
        count += c
    return loss, count


@inner(EXACT)
def _search(row, thresholds, active, bucket, total):
    """Sort the negatives into the gaps between the thresholds; `active` is how many lie above each."""
    for j in range(row.size):
        low = 0
        high = thresholds.size
        while low < high:
            middle = (low + high) // 2
            if thresholds[middle] <= row[j]:
                low = middle + 1
            else:
                high = middle
        active[j] = f32(thresholds.size - low)
        bucket[low] += 1.0
        total[low] += np.float64(row[j])


@inner()
def _slope(row, force):
    """row = force / row, 0 where the row is 0; minus its sum."""
    for j in range(row.size):
        row[j] = force[j] / row[j] if row[j] > f32(0) else f32(0)
    return -_sum(row)


@kernel()
def _triplets(strip, x, y, square, squares, start, stop, own, margin, few, near, out):
    for i in numba.prange(strip.shape[0]):
        row = strip[i]
        lo = start[i]
        hi = stop[i]
        positives = hi - lo - 1
        if positives == 0 or positives + 1 == row.size:
            row[:] = f32(0)
            continue
        close = _distances(row, x[i], y, square[i], squares)
        # The pull along each distance: up for positives, down for negatives.
        force = np.zeros(row.size, dtype=np.float32)
        row[own[i]] = f32(0)
        loss = 0.0
        count = 0.0
        if positives <= few:
            for p in range(lo, hi):
                if p != own[i]:
                    threshold = row[p] + margin
                    some, n = _closer(row[:lo], threshold, force[:lo])
                    more, m = _closer(row[hi:], threshold, force[hi:])
                    loss += some + more
                    count += n + m
                    force[p] = f32(-(n + m))
        else:
            order = np.argsort(row[lo:hi])
            thresholds = np.empty(positives, dtype=np.float32)
            columns = np.empty(positives, dtype=np.int64)
            k = 0
            for q in range(order.size):
                if lo + order[q] != own[i]:
                    columns[k] = lo + order[q]
                    thresholds[k] = row[columns[k]] + margin
                    k += 1
            bucket = np.zeros(positives + 1)
            total = np.zeros(positives + 1)
            _search(row[:lo], thresholds, force[:lo], bucket, total)
            _search(row[hi:], thresholds, force[hi:], bucket, total)
            below = 0.0
            distance = 0.0
            for k in range(positives):
                below += bucket[k]
                distance += total[k]
                loss += below * np.float64(thresholds[k]) - distance
                count += below
                force[columns[k]] = f32(-below)
        out[i, 0] = loss
        out[i, 1] = count
        if close > 1:
            mine = near[i]
            mine[:] = f32(0)
            for j in range(row.size):
                if row[j] > f32(0) and row[j] * row[j] < f32(0.5 * NEAR * NEAR) * (square[i] + squares[j]):
                    mine[j] = force[j] / row[j]
                    force[j] = f32(0)
            out[i, 3] = 1.0
        out[i, 2] = _slope(row, force)


class _Triplets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, positives: Any, margin: float) -> tuple[Tensor, Tensor]:
        n, m = len(x), len(y)
        x, y = x.contiguous(), y.contiguous()
        _, start, stop, own = _arrays(*positives)
        squares_x, squares_y = x.double().square().sum(1).float(), y.double().square().sum(1).float()
        gx, gy = torch.empty_like(x), torch.zeros_like(y)
        pull = torch.zeros(m, dtype=torch.float64)
        out = np.zeros((n, 4))
        step = _strip_rows(n, m)
        buffer, near = x.new_empty(step, m), x.new_empty(step, m)
        grad = any(ctx.needs_input_grad)
        with fast_products(), torch.autocast("cpu", enabled=False):
            for a in range(0, n, step):
                b = min(n, a + step)
                strip = buffer[: b - a]
                torch.mm(x[a:b], y.T, out=strip)
                _triplets(
                    strip.numpy(), x[a:b].numpy(), y.numpy(), squares_x[a:b].numpy(), squares_y.numpy(),
                    start[a:b], stop[a:b], own[a:b], f32(margin), FEW, near.numpy(), out[a:b],
                )  # fmt: skip
                if not grad:
                    continue
                torch.mm(strip, y, out=gx[a:b])
                gx[a:b].addcmul_(x[a:b], torch.from_numpy(out[a:b, 2:3]).float())
                gy.addmm_(strip.T, x[a:b])
                pull -= strip.sum(0)
                if out[a:b, 3].any():
                    _add_near(near, out[a:b, 3], gx[a:b], gy, x[a:b], y)
        gy.addcmul_(y, pull.float()[:, None])
        ctx.save_for_backward(gx, gy)
        loss, count = out.sum(0)[:2]
        found = x.new_tensor(loss), x.new_tensor(count)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        no_second_derivatives("contrastive losses")
        gx, gy = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        return gx * scale if need_x else None, gy * scale if need_y else None, None, None


def _add_near(near: Tensor, flags: np.ndarray, gx: Tensor, gy: Tensor, x: Tensor, y: Tensor) -> None:
    """Gradients of pairs that lie close: sums of differences, where products would cancel."""
    for i in np.flatnonzero(flags):
        j = near[i].nonzero()[:, 0]
        pull = (y[j] - x[i]) * near[i, j, None]
        gx[i] += pull.sum(0)
        gy.index_add_(0, j, pull, alpha=-1)


def triplets(x, y, positives, margin):
    return _Triplets.apply(x, y, positives, margin)
