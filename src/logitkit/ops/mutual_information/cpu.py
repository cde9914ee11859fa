"""A sweep over sorted points for two dimensions, all pairs for more.

Distances are |a - b| rounded to the dtype wherever they are compared, so that a neighbour on the border is on
the border everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.kernels import i32, inner, kernel, to_bits

# Points whose distances are worked on at once, and those whose least distance is kept.
TILE, BLOCK = 1024, 64
# Points that are met at once in a sweep.
STRIP = 32
FIRST = STRIP + 1
# Queries that share what is loaded.
QUERIES = 4
# Turns of the parallel loop; each has a buffer of QUERIES distances to every point.
TURNS = 16
AS_WRITTEN: set[str] = set()


@inner(AS_WRITTEN)
def _begin(a, b, p, q, out):
    """out = max(|a - p|, |b - q|)."""
    for j in range(out.size):
        u = abs(a[j] - p)
        v = abs(b[j] - q)
        out[j] = u if u > v else v


@inner(AS_WRITTEN)
def _further(a, b, p, q, out0, out1, out2, out3):
    """The same for four p and q, where it is more than what out has."""
    for j in range(a.size):
        s = a[j]
        t = b[j]
        u = abs(s - p[0])
        v = abs(t - q[0])
        u = u if u > v else v
        out0[j] = u if u > out0[j] else out0[j]
        u = abs(s - p[1])
        v = abs(t - q[1])
        u = u if u > v else v
        out1[j] = u if u > out1[j] else out1[j]
        u = abs(s - p[2])
        v = abs(t - q[2])
        u = u if u > v else v
        out2[j] = u if u > out2[j] else out2[j]
        u = abs(s - p[3])
        v = abs(t - q[3])
        u = u if u > v else v
        out3[j] = u if u > out3[j] else out3[j]


@inner(AS_WRITTEN)
def _at(features, f, queries):
    row = features[f]
    return row[queries[0]], row[queries[1]], row[queries[2]], row[queries[3]]


@inner(AS_WRITTEN)
def _distances(features, first, last, queries, out):
    """out[q, j] = max over features [first, last) of |features[f, j] - features[f, queries[q]]|."""
    # Two features at a time; of an odd number the first is its own second.
    second = first + 1 - (last - first) % 2
    for start in range(0, features.shape[1], TILE):
        stop = min(features.shape[1], start + TILE)
        for q in range(QUERIES):
            i = queries[q]
            a, b = features[first, start:stop], features[second, start:stop]
            _begin(a, b, features[first, i], features[second, i], out[q, start:stop])
        for f in range(second + 1, last, 2):
            _further(
                features[f, start:stop],
                features[f + 1, start:stop],
                _at(features, f, queries),
                _at(features, f + 1, queries),
                out[0, start:stop],
                out[1, start:stop],
                out[2, start:stop],
                out[3, start:stop],
            )


@inner(AS_WRITTEN)
def _insert(v, best):
    at = best.size - 1
    while at > 0 and best[at - 1] > v:
        best[at] = best[at - 1]
        at -= 1
    best[at] = v


@inner(AS_WRITTEN)
def _least(a, b):
    """The least of max(a, b) over a block, as bits."""
    least = to_bits(a[0] if a[0] > b[0] else b[0])
    for j in range(BLOCK):
        least = min(least, to_bits(a[j] if a[j] > b[j] else b[j]))
    return least


@inner(AS_WRITTEN)
def _radius(x, y, leasts, best):
    """The best.size-th smallest max(x, y); leasts gets that of each block, as bits."""
    last = best.size - 1
    best[:] = np.inf
    for block in range(leasts.size):
        a = x[block * BLOCK : (block + 1) * BLOCK]
        b = y[block * BLOCK : (block + 1) * BLOCK]
        leasts[block] = _least(a, b)
        if leasts[block] < to_bits(best[last]):
            for j in range(BLOCK):
                v = max(a[j], b[j])
                if v < best[last]:
                    _insert(v, best)
    return best[last]


@inner(AS_WRITTEN)
def _rectangle(x, y, leasts, radius):
    """The largest x and y among points with max(x, y) <= radius."""
    width = radius - radius
    height = radius - radius
    bound = to_bits(radius)
    for block in range(leasts.size):
        if leasts[block] <= bound:
            for j in range(block * BLOCK, (block + 1) * BLOCK):
                if x[j] <= radius and y[j] <= radius:
                    width = max(width, x[j])
                    height = max(height, y[j])
    return width, height


@inner(AS_WRITTEN)
def _below(distances, radius):
    count = i32(0)
    for j in range(distances.size):
        count = i32(count + i32(distances[j] < radius))
    return count


@inner(AS_WRITTEN)
def _join(distances, others):
    for j in range(distances.size):
        distances[j] = distances[j] if distances[j] > others[j] else others[j]


@kernel(AS_WRITTEN)
def _all_pairs(features, borders, n, k, rectangles, out):
    """Counts around each point; features: (d, points), padded with infinity to whole blocks."""
    size = features.shape[1]
    groups = (n + QUERIES - 1) // QUERIES
    for turn in numba.prange(TURNS):
        distances = np.empty((borders.size - 1, QUERIES, size), features.dtype)
        leasts = np.full(size // BLOCK, to_bits(features[0, 0]))
        best = np.empty(k, features.dtype)
        queries = np.empty(QUERIES, np.int64)
        for group in range(turn * groups // TURNS, (turn + 1) * groups // TURNS):
            for q in range(QUERIES):
                queries[q] = min(group * QUERIES + q, n - 1)
            for part in range(borders.size - 1):
                _distances(features, borders[part], borders[part + 1], queries, distances[part])
            for q in range(QUERIES):
                i = queries[q]
                for part in range(borders.size - 1):
                    distances[part, q, i] = np.inf  # not its own neighbour
                x, y = distances[0, q], distances[1, q]
                if borders.size == 4:
                    z = distances[2, q]
                    _join(x, z)
                    _join(y, z)
                radius = _radius(x, y, leasts, best)
                if rectangles:
                    width, height = _rectangle(x, y, leasts, radius)
                    out[i, 0] = _below(x, np.nextafter(width, width + 1))
                    out[i, 1] = _below(y, np.nextafter(height, height + 1))
                else:
                    out[i, 0] = _below(x, radius)
                    out[i, 1] = _below(y, radius)
                    if borders.size == 4:
                        out[i, 2] = _below(distances[2, q], radius)


@inner(AS_WRITTEN)
def _within(numbers, low, high, centre, radius, closed):
    """How many of the sorted numbers are nearer to one of them than `radius`, or as near, without itself;
    all of them lie between places `low` and `high`."""
    last = high
    while low < high:
        middle = (low + high) // 2
        d = centre - numbers[middle]
        if d < radius or (closed and d == radius):
            high = middle
        else:
            low = middle + 1
    first = low
    high = last
    while low < high:
        middle = (low + high) // 2
        d = numbers[middle] - centre
        if d < radius or (closed and d == radius):
            low = middle + 1
        else:
            high = middle
    return max(0, low - first - 1)


@inner(AS_WRITTEN)
def _meet(x, y, p, q, best):
    """Points of one strip as neighbours of (p, q)."""
    least = to_bits(abs(x[0] - p))
    least = max(least, to_bits(abs(y[0] - q)))
    for j in range(STRIP):
        u = abs(x[j] - p)
        v = abs(y[j] - q)
        least = min(least, to_bits(u if u > v else v))
    last = best.size - 1
    if least < to_bits(best[last]):
        for j in range(STRIP):
            v = max(abs(x[j] - p), abs(y[j] - q))
            if v < best[last]:
                _insert(v, best)


@inner(AS_WRITTEN)
def _reach(x, y, low, high, p, q, radius):
    """The largest x and y distance of points no further than `radius`."""
    width = radius - radius
    height = radius - radius
    for j in range(low, high):
        u = abs(x[j] - p)
        v = abs(y[j] - q)
        if u <= radius and v <= radius:
            width = max(width, u)
            height = max(height, v)
    return width, height


@kernel(AS_WRITTEN)
def _sweep(x, y, heights, order, k, rectangles, out):
    """Counts for two dimensions. x is sorted and has FIRST infinite numbers before and behind, as has y in
    its order; from each point strips of others are met outwards until x alone is too far."""
    n = order.size
    for turn in numba.prange(TURNS):
        best = np.empty(k, x.dtype)
        for i in range(turn * n // TURNS + FIRST, (turn + 1) * n // TURNS + FIRST):
            p = x[i]
            q = y[i]
            best[:] = np.inf
            left = i
            right = i + 1
            while True:
                behind = p - x[left - 1] < best[k - 1]
                if behind:
                    left -= STRIP
                    _meet(x[left : left + STRIP], y[left : left + STRIP], p, q, best)
                ahead = x[right] - p < best[k - 1]
                if ahead:
                    _meet(x[right : right + STRIP], y[right : right + STRIP], p, q, best)
                    right += STRIP
                if not (behind or ahead):
                    break
            radius = best[k - 1]
            # Ties with the radius may lie beyond what was met.
            while x[right] - p <= radius:
                right += 1
            while p - x[left - 1] <= radius:
                left -= 1
            width = radius
            height = radius
            if rectangles:
                width, height = _reach(x, y, left, i, p, q, radius)
                w, h = _reach(x, y, i + 1, right, p, q, radius)
                width = max(width, w)
                height = max(height, h)
            to = order[i - FIRST]
            out[to, 0] = _within(x, left, right, p, width, rectangles)
            out[to, 1] = _within(heights, 0, n, q, height, rectangles)


def counts(parts: Sequence[Float[Tensor, "n _"]], k: int, rectangles: bool) -> Int[Tensor, "n spaces"]:
    n = len(parts[0])
    out = torch.empty(n, len(parts), dtype=torch.int64)
    widths = [part.shape[1] for part in parts]
    if widths == [1, 1]:
        x, order = parts[0][:, 0].sort()
        y = parts[1][:, 0]
        heights = y.sort().values
        x, across = (F.pad(v, (FIRST, FIRST), value=torch.inf) for v in (x, y[order]))
        x[:FIRST] = -torch.inf
        _sweep(x.numpy(), across.numpy(), heights.numpy(), order.numpy(), k, rectangles, out.numpy())
        return out
    features = torch.full((sum(widths), -(-n // BLOCK) * BLOCK), torch.inf, dtype=parts[0].dtype)
    features[:, :n] = torch.cat([part.T for part in parts])
    borders = np.cumsum([0, *widths])
    _all_pairs(features.numpy(), borders, n, k, rectangles, out.numpy())
    return out
