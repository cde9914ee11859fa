"""Two marks on a grid: the label depends only on where they are relative to each other."""

from __future__ import annotations

import torch
from torch import Generator

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least


def marks(generator: Generator, n: int = 3000, size: int = 16, distance: int = 8) -> Dataset:
    """Two bright pixels on a black grid; y says whether they share a row, a column or neither.

    The three classes are equally frequent. Marks in one row or column are at least `distance` pixels apart;
    others differ by at least `distance` in row or in column, and by at least one in both. x is
    (n, 1, size, size). extras: "marks" (n, 2, 2) int64, row and column of each mark.
    """
    at_least(3, n=n)
    at_least(2, distance=distance)
    at_least(2 * distance, size=size)
    y = torch.arange(n) % 3
    far = torch.randint(distance, size, (n,), generator=generator)
    start = (torch.rand(n, generator=generator) * (size - far)).long()
    near = torch.randint(1, size, (n,), generator=generator)
    base = torch.randint(size, (n,), generator=generator)
    along = torch.stack([start, start + far], dim=1)
    across = torch.stack([base, torch.where(y == 2, (base + near) % size, base)], dim=1)
    flip = torch.rand(n, generator=generator) < 0.5
    horizontal = torch.where(y == 2, flip, y == 0)
    rows = torch.where(horizontal[:, None], across, along)
    columns = torch.where(horizontal[:, None], along, across)
    x = torch.zeros(n, 1, size, size)
    x[torch.arange(n)[:, None], 0, rows, columns] = 1
    extras = {"marks": torch.stack([rows, columns], dim=-1)}
    return Dataset("marks", x, y, "classification", "image", ("same row", "same column", "neither"), extras)
