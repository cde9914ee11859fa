"""Suppression among near boxes only, 16 at a time.

Boxes stand in rows by their upper edge, in a row by their left edge. What a box can overlap in a row is one
run: it begins where the largest right edge so far passes the box's left edge and ends where left edges pass
its right one. Runs are widened to blocks, whose largest scores are kept for the search of the next box.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.kernels import exp, inner, kernel, to_bits

# A block holds its boxes' x1, y1, x2, y2, areas and scores, one after the other.
BLOCK = 32
FIELDS = 6
SCORES = 5 * BLOCK
# Sums in the order they are written, so that overlaps are those of plain torch to the bit.
AS_WRITTEN: set[str] = set()


@inner(AS_WRITTEN)
def _overlap(block, t, box, one):
    """Intersection over union of a block's box t and `box`."""
    x1, y1, x2, y2, area = box
    zero = one - one
    a = block[t]
    b = block[t + BLOCK]
    c = block[t + 2 * BLOCK]
    d = block[t + 3 * BLOCK]
    width = (c if c < x2 else x2) - (a if a > x1 else x1)
    height = (d if d < y2 else y2) - (b if b > y1 else y1)
    both = (width if width > zero else zero) * (height if height > zero else zero)
    union = (block[t + 4 * BLOCK] + area) - both
    return both / (union if union > zero else one)


@inner(AS_WRITTEN)
def _decay_smoothly(block, box, rate, least, one):
    """Multiply a block's scores by exp(rate o^2), to -1 where that is below `least`; the largest, as bits."""
    top = to_bits(-one)
    for t in range(BLOCK):
        o = _overlap(block, t, box, one)
        s = block[t + SCORES] * exp(rate * (o * o))
        s = s if s >= least else -one
        block[t + SCORES] = s
        top = max(top, to_bits(s))
    return top


@inner(AS_WRITTEN)
def _decay_from(block, box, start, height, slope, least, one):
    """The same for the factor height - slope o where o >= start."""
    top = to_bits(-one)
    for t in range(BLOCK):
        o = _overlap(block, t, box, one)
        f = height - slope * o if o >= start else one
        s = block[t + SCORES] * f
        s = s if s >= least else -one
        block[t + SCORES] = s
        top = max(top, to_bits(s))
    return top


@inner()
def _rows_of(boxes, members):
    """The row of each member, and how many rows there are."""
    low = np.inf
    high = -np.inf
    extent = 0.0
    for i in members:
        low = min(low, boxes[i, 1])
        high = max(high, boxes[i, 1])
        extent += boxes[i, 3] - boxes[i, 1]
    fine = 2 * (high - low) * members.size / extent if extent > 0 else np.inf
    count = int(max(1.0, min(fine, np.sqrt(float(members.size)) / 2)))
    row = np.zeros(members.size, np.int64)
    if high > low:
        for m in range(members.size):
            share = (boxes[members[m], 1] - low) / (high - low)
            row[m] = min(count - 1, int(share * count)) if share >= 0 else 0  # not NaN
    return row, count


@inner(AS_WRITTEN)
def _stand(boxes, scores, members, row, data, ids, slots, rights, starts, ends):
    """Put the members, sorted by left edge, into blocks row by row."""
    ends[:] = 0
    for r in row:
        ends[r] += 1
    blocks = 0
    for r in range(ends.size):
        starts[r] = blocks
        blocks += (ends[r] + BLOCK - 1) // BLOCK
        ends[r] = starts[r] * BLOCK
    starts[ends.size] = blocks
    data[: blocks * BLOCK * FIELDS] = 0
    for b in range(blocks):
        data[b * BLOCK * FIELDS + SCORES : (b + 1) * BLOCK * FIELDS] = -1
    for m in range(members.size):
        i = members[m]
        place = ends[row[m]]
        ends[row[m]] += 1
        right = boxes[i, 2]
        rights[place] = max(right, rights[place - 1]) if place > starts[row[m]] * BLOCK else right
        ids[place] = i
        at = _at(place)
        slots[m] = at
        for field in range(4):
            data[at + field * BLOCK] = boxes[i, field]
        data[at + 4 * BLOCK] = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
        data[at + SCORES] = scores[m]


@inner()
def _at(place):
    """Where the data of a place begin."""
    return place // BLOCK * (BLOCK * FIELDS) + place % BLOCK


@inner()
def _survey(boxes, members, row, data, starts, none, upper, lower, tops, row_tops):
    """What rows reach from and to, and the largest scores of blocks and rows."""
    upper[:] = np.inf
    lower[:] = -np.inf
    for m in range(members.size):
        r = row[m]
        upper[r] = min(upper[r], boxes[members[m], 1])
        lower[r] = max(lower[r], boxes[members[m], 3])
    row_tops[:] = none
    for r in range(row_tops.size):
        for b in range(starts[r], starts[r + 1]):
            top = none
            for t in range(BLOCK):
                top = max(top, to_bits(data[b * BLOCK * FIELDS + SCORES + t]))
            tops[b] = top
            row_tops[r] = max(row_tops[r], top)


@inner()
def _best(data, ids, starts, tops, row_tops, none):
    """The place of the largest score, of equal ones that of the lowest index; -1 if all are gone."""
    top = none
    for r in range(row_tops.size):
        top = max(top, row_tops[r])
    best = -1
    if top == none:
        return best
    for r in range(row_tops.size):
        if row_tops[r] == top:
            for b in range(starts[r], starts[r + 1]):
                if tops[b] == top:
                    for t in range(BLOCK):
                        place = b * BLOCK + t
                        if to_bits(data[_at(place) + SCORES]) == top and (best < 0 or ids[place] < ids[best]):
                            best = place
    return best


@inner()
def _run(data, rights, first, last, left, right):
    """The places from `first` to `last` that can reach between `left` and `right`."""
    end = last
    while first < last:
        middle = (first + last) // 2
        if rights[middle] > left:
            last = middle
        else:
            first = middle + 1
    low = first
    while low < end:
        middle = (low + end) // 2
        if data[_at(middle)] >= right:
            end = middle
        else:
            low = middle + 1
    return first, end


@inner(AS_WRITTEN)
def _suppress_class(boxes, scores, members, smooth, by, height, slope, least, one, out):
    none = to_bits(-one)
    members = members[np.argsort(boxes[members, 0])]
    row, rows = _rows_of(boxes, members)
    current = scores[members]
    size = (members.size // BLOCK + rows + 1) * BLOCK
    data = np.empty(size * FIELDS, boxes.dtype)
    ids = np.empty(size, np.int64)
    slots = np.empty(members.size, np.int64)
    rights = np.empty(size, boxes.dtype)
    starts = np.empty(rows + 1, np.int64)
    ends = np.empty(rows, np.int64)
    upper = np.empty(rows, boxes.dtype)
    lower = np.empty(rows, boxes.dtype)
    tops = np.full(size // BLOCK, none)
    row_tops = np.full(rows, none)
    turns = 0
    while True:
        if turns == 0:
            # Boxes that are gone make way for those that are left.
            alive = np.nonzero(current >= least)[0]
            members, row, current = members[alive], row[alive], current[alive]
            _stand(boxes, current, members, row, data, ids, slots, rights, starts, ends)
            _survey(boxes, members, row, data, starts, none, upper, lower, tops, row_tops)
            turns = max(64, members.size // 4)
        place = _best(data, ids, starts, tops, row_tops, none)
        if place < 0:
            return
        at = _at(place)
        out[ids[place]] = data[at + SCORES]
        data[at + SCORES] = -1
        own = place // BLOCK
        box = (data[at], data[at + BLOCK], data[at + 2 * BLOCK], data[at + 3 * BLOCK], data[at + 4 * BLOCK])
        for r in range(rows):
            here = starts[r] <= own < starts[r + 1]
            if here or (upper[r] < box[3] and lower[r] > box[1]):
                first, last = _run(data, rights, starts[r] * BLOCK, ends[r], box[0], box[2])
                if here:
                    first, last = min(first, place), max(last, place + 1)
                if first < last:
                    for b in range(first // BLOCK, (last + BLOCK - 1) // BLOCK):
                        block = data[b * BLOCK * FIELDS : (b + 1) * BLOCK * FIELDS]
                        if smooth:
                            tops[b] = _decay_smoothly(block, box, by, least, one)
                        else:
                            tops[b] = _decay_from(block, box, by, height, slope, least, one)
                    top = none
                    for b in range(starts[r], starts[r + 1]):
                        top = max(top, tops[b])
                    row_tops[r] = top
        turns -= 1
        if turns == 0:
            for m in range(members.size):
                current[m] = data[slots[m] + SCORES]


@kernel(AS_WRITTEN)
def _suppress(boxes, scores, order, groups, smooth, by, height, slope, least, one, out):
    for g in numba.prange(groups.size - 1):
        members = order[groups[g] : groups[g + 1]]
        _suppress_class(boxes, scores, members, smooth, by, height, slope, least, one, out)


def suppress(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    classes: Int[Tensor, " n"] | None,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
) -> Float[Tensor, " n"]:
    n = len(scores)
    out = torch.full_like(scores, -1)
    if n == 0:
        return out
    if classes is None:
        order, groups = np.arange(n), np.array([0, n])
    else:
        labels, sorted_ = classes.sort(stable=True)
        order = sorted_.numpy()
        groups = np.r_[0, np.flatnonzero(np.diff(labels.numpy())) + 1, n]
    x, s = boxes.contiguous().numpy(), scores.contiguous().numpy()
    number = x.dtype.type
    by = number(-1 / sigma if method == "gaussian" else iou_threshold)
    if method == "above":
        by = np.nextafter(by, number(np.inf))
    both = number(method == "linear")
    rule = (method == "gaussian", by, both, both, number(score_threshold), number(1), out.numpy())
    if len(groups) == 2:
        _suppress_class(x, s, order, *rule)  # without starting threads
    else:
        _suppress(x, s, order, groups, *rule)
    return out
