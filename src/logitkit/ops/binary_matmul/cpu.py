"""Signs packed by vector comparisons, and their products by vector popcounts.

Numba keeps no accumulators in vector registers across a loop of its own, so the innermost block is written
in LLVM's vectors, which it lowers to whatever the CPU has.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from logitkit.ops.kernels import kernel

# A block of products is ROWS rows of a against COLUMNS rows of b.
LANES = 8
ROWS, VECTORS = 4, 4
COLUMNS = LANES * VECTORS
# Blocks of rows in one turn of the parallel loop.
TURN = 16


def _at(context, builder, signature, arguments, which, offset, vector):
    """A pointer to `vector` at an offset into an array argument."""
    array = context.make_array(signature.args[which])(context, builder, arguments[which])
    return builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer())


@intrinsic
def _negative(typing, x, start):
    """Which of the 64 numbers from x[start] on are below 0, as the bits of a word."""

    def generate(context, builder, signature, arguments):
        single = signature.args[0].dtype == types.float32
        number = ir.FloatType() if single else ir.DoubleType()
        vector = ir.VectorType(number, 64)
        numbers = builder.load(_at(context, builder, signature, arguments, 0, arguments[1], vector))
        numbers.align = 4 if single else 8
        below = builder.fcmp_ordered("<", numbers, ir.Constant(vector, [0.0] * 64))
        return builder.bitcast(below, ir.IntType(64))

    return types.int64(x, types.intp), generate


@intrinsic
def _differences(typing, a, i, b, j, words, out):
    """out[r, c] = number of bits in which row r of a panel of a and row c of a panel of b differ.

    a[i:] holds ROWS words per step, b[j:] COLUMNS words per step, over `words` steps.
    """

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        vector = ir.VectorType(word, LANES)
        zero = ir.Constant(vector, None)
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{LANES}i64"
        )
        _, i, _, j, words, _ = arguments
        index = i.type
        before = builder.block
        loop, after = builder.append_basic_block("step"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(index)
        sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
        columns = []
        for v in range(VECTORS):
            offset = builder.add(j, builder.add(builder.mul(step, index(COLUMNS)), index(v * LANES)))
            loaded = builder.load(_at(context, builder, signature, arguments, 2, offset, vector))
            loaded.align = 8
            columns.append(loaded)
        totals = []
        for r in range(ROWS):
            offset = builder.add(i, builder.add(builder.mul(step, index(ROWS)), index(r)))
            one = builder.load(_at(context, builder, signature, arguments, 0, offset, word))
            lane0 = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.IntType(32)(0))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            row = builder.shuffle_vector(lane0, ir.Constant(vector, ir.Undefined), mask)
            totals.append([])
            for v in range(VECTORS):
                bits = builder.call(popcount, [builder.xor(row, columns[v])])
                totals[r].append(builder.add(sums[r][v], bits))
        following = builder.add(step, index(1))
        step.add_incoming(index(0), before)
        step.add_incoming(following, loop)
        for r in range(ROWS):
            for v in range(VECTORS):
                sums[r][v].add_incoming(zero, before)
                sums[r][v].add_incoming(totals[r][v], loop)
        builder.cbranch(builder.icmp_signed("<", following, words), loop, after)
        builder.position_at_end(after)
        for r in range(ROWS):
            for v in range(VECTORS):
                place = _at(context, builder, signature, arguments, 5, index(r * COLUMNS + v * LANES), vector)
                builder.store(totals[r][v], place).align = 8
        return context.get_dummy_value()

    return types.void(a, types.intp, b, types.intp, types.intp, out), generate


@kernel()
def _pack(x, out):
    for r in numba.prange(x.shape[0]):
        row = x[r]
        whole = row.size // 64
        for w in range(whole):
            out[r, w] = _negative(row, w * 64)
        if whole < out.shape[1]:
            rest = np.zeros(64, x.dtype)
            rest[: row.size - whole * 64] = row[whole * 64 :]
            out[r, whole] = _negative(rest, 0)


@kernel()
def _panels(words, size, out):
    """Each `size` rows after each other, word by word; zeros where there is no such row."""
    batch, rows, steps = words.shape
    panels = (rows + size - 1) // size
    for p in numba.prange(batch * panels):
        one = out[p * steps * size : (p + 1) * steps * size]
        first = p % panels * size
        for r in range(size):
            if first + r < rows:
                row = words[p // panels, first + r]
                for s in range(steps):
                    one[s * size + r] = row[s]
            else:
                for s in range(steps):
                    one[s * size + r] = 0


@kernel()
def _products(a, b, steps, k, out):
    batch, m, n = out.shape
    row_panels = (m + ROWS - 1) // ROWS
    column_panels = (n + COLUMNS - 1) // COLUMNS
    turns = (row_panels + TURN - 1) // TURN
    for turn in numba.prange(batch * turns):
        which = turn // turns
        first = turn % turns * TURN
        counts = np.empty((ROWS, COLUMNS), np.int64)
        for c in range(column_panels):
            width = min(COLUMNS, n - c * COLUMNS)
            for p in range(first, min(first + TURN, row_panels)):
                i = (which * row_panels + p) * steps * ROWS
                j = (which * column_panels + c) * steps * COLUMNS
                _differences(a, i, b, j, steps, counts)
                for r in range(min(ROWS, m - p * ROWS)):
                    row = out[which, p * ROWS + r, c * COLUMNS : c * COLUMNS + width]
                    for q in range(row.size):
                        row[q] = np.float32(k - 2 * np.int32(counts[r, q]))


def pack(x: Float[Tensor, "rows k"]) -> Int[Tensor, "rows words"]:
    x = x if x.dtype == torch.float64 else x.float()
    out = torch.empty(len(x), (x.shape[1] + 63) // 64, dtype=torch.int64)
    if out.numel() > 0:
        _pack(x.numpy(), out.numpy())
    return out


def product(
    a: Int[Tensor, "batch m words"], b: Int[Tensor, "batch n words"], k: int
) -> Float[Tensor, "batch m n"]:
    steps = a.shape[2]
    if steps == 0:
        return torch.zeros(a.shape[0], a.shape[1], b.shape[1])
    out = torch.empty(a.shape[0], a.shape[1], b.shape[1])
    if out.numel() > 0:
        _products(_panelled(a, ROWS), _panelled(b, COLUMNS), steps, np.int32(k), out.numpy())
    return out


def _panelled(words: Tensor, size: int) -> np.ndarray:
    batch, rows, steps = words.shape
    out = np.empty(batch * ((rows + size - 1) // size) * steps * size, np.int64)
    _panels(words.numpy(), size, out)
    return out
