"""Clusters of equal size on the unit sphere."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from logitkit.ops.checks import check_features
from logitkit.ops.sphere import unit

STEPS = 10  # of 2-means, at most, at each cut


@torch.no_grad()
def balanced_clusters(
    x: Float[Tensor, "n d"], size: int, generator: Generator | None = None
) -> list[Int[Tensor, " size"]]:
    """The rows of `x` in clusters of exactly `size`, by direction; what does not fill one comes last.

    Cut in two again and again: by 2-means on unit vectors in which one half of the clusters goes to either
    side, the rows in the order of (c1 - c2)' x. Groups of equal size are cut at once, so that the cost is
    O(n d log(n / size)) in few operations.

    Raises: ValueError for a size below 1, or x that is not (n, d) floating point.
    """
    e = unit(check_features(x))
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    groups = [torch.arange(len(e), device=e.device)]
    while len(groups[0]) > size:
        cut: list[Tensor] = []
        start = 0
        while start < len(groups):  # groups come in runs of equal length
            stop = start
            while stop < len(groups) and len(groups[stop]) == len(groups[start]):
                stop += 1
            rows = torch.stack(groups[start:stop])
            if rows.shape[1] > size:
                clusters = -(-rows.shape[1] // size)
                left = size * (clusters - clusters // 2)
                rows = _in_two(e, rows, left, generator)
                cut += [half for row in rows for half in (row[:left], row[left:])]
            else:
                cut += list(rows)
            start = stop
        groups = sorted(cut, key=len, reverse=True)
    return groups


def _in_two(e: Tensor, rows: Tensor, left: int, generator: Generator | None) -> Tensor:
    """(groups, n) rows of e, reordered so that the first `left` of each group are one side of its cut."""
    groups, n = rows.shape
    pair = torch.rand(groups, n, generator=generator).argsort(1)[:, :2].to(rows.device)
    members = e[rows]
    centre = members.take_along_dim(pair[..., None], 1)
    order = None
    for _ in range(STEPS):
        toward = (members @ (centre[:, 0] - centre[:, 1])[..., None])[..., 0]
        found = torch.argsort(toward, dim=1, descending=True, stable=True)
        if order is not None and torch.equal(found, order):
            break
        order = found
        sides = members.take_along_dim(order[..., None], 1)
        centre = torch.stack([unit(sides[:, :left].mean(1)), unit(sides[:, left:].mean(1))], 1)
    assert order is not None
    return rows.take_along_dim(order, 1)
