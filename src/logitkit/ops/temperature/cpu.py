"""One fused pass over the logits per step of the search."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.kernels import exp64, kernel, largest

# Rows in one turn of the parallel loop.
ROWS = 256


@kernel()
def _derivatives(z, y, beta):
    chunks = (z.shape[0] + ROWS - 1) // ROWS
    total = np.zeros((chunks, 3))
    for chunk in numba.prange(chunks):
        first = 0.0
        second = 0.0
        third = 0.0
        for i in range(chunk * ROWS, min((chunk + 1) * ROWS, z.shape[0])):
            row = z[i]
            top = largest(row)
            s0 = 0.0
            s1 = 0.0
            s2 = 0.0
            s3 = 0.0
            for j in range(row.size):
                d = np.float64(row[j]) - np.float64(top)
                e = exp64(beta * d)
                s0 += e
                s1 += e * d
                s2 += e * d * d
                s3 += e * d * d * d
            mean = s1 / s0
            square = s2 / s0
            first += mean - (np.float64(row[y[i]]) - np.float64(top))
            second += square - mean * mean
            third += s3 / s0 - 3 * mean * square + 2 * mean * mean * mean
        total[chunk, 0] = first
        total[chunk, 1] = second
        total[chunk, 2] = third
    return total


@kernel()
def _squared_deviation(z):
    chunks = (z.shape[0] + ROWS - 1) // ROWS
    total = np.zeros(chunks)
    for chunk in numba.prange(chunks):
        for i in range(chunk * ROWS, min((chunk + 1) * ROWS, z.shape[0])):
            row = z[i]
            s = 0.0
            for j in range(row.size):
                s += np.float64(row[j])
            mean = s / row.size
            s = 0.0
            for j in range(row.size):
                d = np.float64(row[j]) - mean
                s += d * d
            total[chunk] += s
    return total


def derivatives(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], beta: float
) -> tuple[float, float, float]:
    first, second, third = _derivatives(logits.numpy(), target.numpy(), beta).sum(0) / len(logits)
    return float(first), float(second), float(third)


def spread(logits: Float[Tensor, "batch classes"]) -> float:
    return float(np.sqrt(_squared_deviation(logits.numpy()).sum() / logits.numel()))
