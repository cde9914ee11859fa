"""Which pairs of a batch are positive, in a form whose size does not grow with the square of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Positives(NamedTuple):
    """Each row's positive columns as runs: row i has columns start[r]..stop[r]-1 for r in
    first[i]..first[i+1]-1, in rising order. own[i] is the column that is row i itself and takes part in
    nothing, or -1."""

    first: Int[Tensor, " rows_and_one"]
    start: Int[Tensor, " runs"]
    stop: Int[Tensor, " runs"]
    own: Int[Tensor, " rows"]

    def counts(self) -> Int[Tensor, " rows"]:
        """Number of positives of each row."""
        sizes = torch.cat([self.start.new_zeros(1), (self.stop - self.start).cumsum(0)])
        inside = self.own >= 0
        return sizes[self.first[1:]] - sizes[self.first[:-1]] - inside.long()

    def mask(self, columns: int) -> Bool[Tensor, "rows columns"]:
        """Dense mask of the positives, without the rows' own columns."""
        rows = len(self.own)
        row = torch.repeat_interleave(torch.arange(rows, device=self.own.device), self.first.diff())
        edges = torch.zeros(rows, columns + 1, dtype=torch.int32, device=self.own.device)
        one = torch.ones_like(row, dtype=torch.int32)
        edges.index_put_((row, self.start), one, accumulate=True)
        edges.index_put_((row, self.stop), -one, accumulate=True)
        return (edges.cumsum(1)[:, :-1] > 0) & ~self.own_mask(columns)

    def own_mask(self, columns: int) -> Bool[Tensor, "rows columns"]:
        return torch.arange(columns, device=self.own.device) == self.own[:, None]


def same_label(
    labels: Int[Tensor, " rows"], of: Int[Tensor, " columns"], offset: int
) -> tuple[Positives, Int[Tensor, " columns"]]:
    """Positives are the columns with the row's label; row i is itself column `offset + i`.

    Also returns the order into which columns have to be put, sorted by label, which makes each row's
    positives (and the row itself) one run.
    """
    order = torch.argsort(of, stable=True)
    ordered = of[order]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    rows = torch.arange(len(labels) + 1, device=order.device)
    start = torch.searchsorted(ordered, labels)
    stop = torch.searchsorted(ordered, labels, right=True)
    return Positives(rows, start, stop, place[offset : offset + len(labels)]), order


def one_each(columns: Int[Tensor, " rows"]) -> Positives:
    """One positive column per row; no column is the row itself."""
    rows = torch.arange(len(columns) + 1, device=columns.device)
    return Positives(rows, columns, columns + 1, torch.full_like(columns, -1))


def listed(pairs: Int[Tensor, "2 n"], rows: int) -> Positives:
    """Positives given as pairs (row, column), sorted and without repeats."""
    first = torch.searchsorted(pairs[0].contiguous(), torch.arange(rows + 1, device=pairs.device))
    return Positives(first, pairs[1], pairs[1] + 1, torch.full_like(first[1:], -1))
