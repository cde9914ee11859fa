"""Numerator, denominator and their derivatives block by block, so that what lies between x and the result
never leaves the cache.

Each coefficient is spread over a tile: one row of x, or several short ones. Steps of Horner's rule, and sums
for the coefficients' gradients, are then loops over neighbouring numbers whatever the degrees and groups are.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.kernels import EXACT, inner, kernel
from logitkit.ops.rational import reference

# Numbers in a block, in a tile and in one turn of the parallel loop; a turn has at least so many tiles.
BLOCK, TILE, TURN, TILES = 512, 256, 1 << 16, 32


@inner(EXACT)
def _horner(c, i, j, x, value, slope):
    """value = c_0 + c_1 x + .., and slope its derivative, by the coefficients of places i to j of a tile."""
    top = c[len(c) - 1, i:j]
    for n in range(x.size):
        value[n] = top[n]
        slope[n] = 0
    for k in range(len(c) - 2, -1, -1):
        each = c[k, i:j]
        for n in range(x.size):
            slope[n] = slope[n] * x[n] + value[n]
            value[n] = value[n] * x[n] + each[n]


@inner(EXACT)
def _add_powers(w, x, sums, turn, i, j):
    """sums_k += w x^k; w is used up."""
    for k in range(sums.shape[1]):
        total = sums[turn, k, i:j]
        for n in range(x.size):
            total[n] += w[n]
            w[n] *= x[n]


@kernel(EXACT)
def _values(x, a, b, turn, y):
    tile = a.shape[1]
    for t in numba.prange((x.size + turn - 1) // turn):
        p, p_slope = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
        s, s_slope = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
        for first in range(t * turn, min(x.size, (t + 1) * turn), tile):
            for i in range(0, min(tile, x.size - first), BLOCK):
                j = min(i + BLOCK, tile, x.size - first)
                here = x[first + i : first + j]
                out = y[first + i : first + j]
                _horner(a, i, j, here, p, p_slope)
                _horner(b, i, j, here, s, s_slope)
                for n in range(here.size):
                    out[n] = p[n] / (1 + abs(here[n] * s[n]))


@inner(EXACT)
def _slopes(x, g, p, p_slope, s, s_slope, out):
    """out, the gradient in x; in the places of p and s, those in a_0 and b_1."""
    for n in range(x.size):
        inner = x[n] * s[n]
        share = 1 / (1 + abs(inner))
        by_p = g[n] * share
        by_s = by_p * p[n] * share
        by_s = by_s if inner < 0 else -by_s
        out[n] = by_p * p_slope[n] + by_s * (x[n] * s_slope[n] + s[n])
        p[n] = by_p
        s[n] = by_s * x[n]


@kernel(EXACT)
def _gradients(x, g, a, b, turn, out, a_sums, b_sums):
    """The gradient in x, and per turn and place in a tile those in a and b."""
    tile = a.shape[1]
    for t in numba.prange((x.size + turn - 1) // turn):
        p, p_slope = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
        s, s_slope = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
        for first in range(t * turn, min(x.size, (t + 1) * turn), tile):
            for i in range(0, min(tile, x.size - first), BLOCK):
                j = min(i + BLOCK, tile, x.size - first)
                here = x[first + i : first + j]
                _horner(a, i, j, here, p, p_slope)
                _horner(b, i, j, here, s, s_slope)
                _slopes(here, g[first + i : first + j], p, p_slope, s, s_slope, out[first + i : first + j])
                _add_powers(p, here, a_sums, t, i, j)
                _add_powers(s, here, b_sums, t, i, j)


def _tiles(a: Tensor, b: Tensor, channels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Coefficients at each place of a tile, and the numbers in a turn."""
    times = -(-TILE // channels)
    tile = times * channels
    each = b.numpy().T.repeat(channels // len(b), axis=1)
    of_a = np.repeat(a.numpy()[:, None], tile, axis=1)
    return of_a, np.tile(each, (1, times)), max(TILES, TURN // tile) * tile


class _Rational(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, b)
        y = torch.empty_like(x)
        _values(x.numpy().ravel(), *_tiles(a, b, x.shape[1]), y.numpy().ravel())
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            wanted = [v for v, needed in zip((x, a, b), ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(reference.group_rational(x, a, b), wanted, g, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        of_a, of_b, turn = _tiles(a, b, x.shape[1])
        turns, tile = -(-x.numel() // turn), of_a.shape[1]
        dx, values = torch.empty_like(x), x.numpy()
        a_sums, b_sums = (np.zeros((turns, len(c), tile), values.dtype) for c in (of_a, of_b))
        _gradients(
            values.ravel(), g.contiguous().numpy().ravel(), of_a, of_b, turn, dx.numpy().ravel(),
            a_sums, b_sums,
        )  # fmt: skip
        da = a_sums.sum((0, 2), dtype=np.float64)
        db = (
            b_sums.sum(0, dtype=np.float64)
            .reshape(b.shape[1], -1, len(b), x.shape[1] // len(b))
            .sum((1, 3))
            .T
        )
        return dx, torch.from_numpy(da).to(a.dtype), torch.from_numpy(db).to(b.dtype)


def group_rational(
    x: Float[Tensor, "rows channels"], a: Float[Tensor, " m1"], b: Float[Tensor, "groups n"]
) -> Float[Tensor, "rows channels"]:
    return _Rational.apply(x.contiguous(), a, b)
