"""The sums in one reading of the scores."""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.kernels import exp, kernel, largest

# Rows in one turn of the parallel loop.
ROWS = 512


@kernel()
def _bin_sums(x, y, bins, from_logits):
    turns = (x.shape[0] + ROWS - 1) // ROWS
    sums = np.zeros((turns, 3, bins))
    highest = np.empty(turns)
    nan = np.zeros(turns, np.bool_)
    for turn in numba.prange(turns):
        most = -np.inf
        for i in range(turn * ROWS, min((turn + 1) * ROWS, x.shape[0])):
            row = x[i]
            total = row[0]
            for j in range(1, row.size):
                total += row[j]
            nan[turn] |= np.isnan(total)
            top = largest(row)
            most = max(most, np.float64(top))
            confidence = np.float64(top)
            if from_logits:
                weight = 0.0
                for j in range(row.size):
                    weight += exp(row[j] - top)
                confidence = 1 / weight
            # NumPy's rule, and torch's: of equal scores the first is the prediction.
            right = row[y[i]] == top
            if right:
                earlier = 0
                before = row[: y[i]]
                for j in range(before.size):
                    earlier += before[j] == top
                right = earlier == 0
            b = min(max(int(np.ceil(confidence * bins)) - 1, 0), bins - 1)
            sums[turn, 0, b] += 1
            sums[turn, 1, b] += confidence
            sums[turn, 2, b] += right
        highest[turn] = most
    return sums, highest, nan


def bin_sums(
    x: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], bins: int, from_logits: bool
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"], float, bool]:
    sums, highest, nan = _bin_sums(x.numpy(), target.numpy(), bins, from_logits)
    counts, confidence, correct = torch.from_numpy(sums.sum(0))
    return counts, confidence, correct, float(highest.max()), bool(nan.any())
