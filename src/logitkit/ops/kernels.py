"""What CPU kernels are written with: a decorator that runs them on torch's threads, and an exp that fills the
lanes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from numba import extending
from numba.core import types
from numba.extending import intrinsic

# Sums may be reordered, which is what lets them vectorise; NaN and infinity keep their meaning.
SUMS = {"reassoc", "contract", "nsz", "arcp"}
# For code whose order of operations matters.
EXACT = {"contract"}

# OpenMP is what torch runs on. Other threads would wait for torch's, which keep their cores busy for
# milliseconds after an operation.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def kernel(fastmath: set[str] = SUMS) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function on NumPy arrays that loops over `numba.prange`; it runs on as many threads as torch
    does.

    The compiled code is cached on disk. For results that do not depend on the number of threads, let each
    turn of the `prange` do a fixed piece of work and write its own part of the result.
    """

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        def compiled(function: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
            options = {"nogil": True, "cache": True, "fastmath": fastmath, "error_model": "numpy"}
            return numba.njit(parallel=parallel, **options)(function)

        # Numba's cache tells functions apart by name, not by their options.
        alone: Any = FunctionType(function.__code__, function.__globals__, function.__name__)
        alone.__qualname__ = f"{function.__qualname__}_alone"
        many, one = compiled(function, True), compiled(alone, False)

        @functools.wraps(function)
        def run(*arguments: Any) -> Any:
            threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
            if threads == 1:
                return one(*arguments)  # without OpenMP, which would hang in a forked process
            numba.set_num_threads(threads)
            return many(*arguments)

        return run

    return compile


def inner(fastmath: set[str] = SUMS) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function that kernels call.

    Division by zero gives inf or NaN, as in torch; Python's error would keep loops from vectorising.
    """
    return numba.njit(cache=True, fastmath=fastmath, error_model="numpy")


f32 = np.float32
i32 = np.int32
_LOG2E = f32(1.4426950408889634)
# log 2 in two pieces: n * _LN2_HIGH is exact for |n| < 2^9 (Cody and Waite).
_LN2_HIGH, _LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
# Adding 1.5 * 2^23 leaves the nearest integer in the low bits, with no conversion that NaN would break.
_ROUND, _ROUND_BITS = f32(12582912.0), i32(0x4B400000)
_LOWEST, _HIGHEST = f32(-88.5), f32(88.72)
_C2, _C3, _C4, _C5, _C6 = f32(0.5), f32(0.16666657), f32(0.041666485), f32(0.0083346), f32(0.0013888)


@intrinsic
def to_bits(typing, x):
    """The bits of a float32 as an int32, of a float64 as an int64: from 0 on in the order of the numbers."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.int64(x) if x == types.float64 else types.int32(types.float32)), generate


@intrinsic
def from_bits(typing, x):
    """The float32 with the bits of an int32, the float64 with those of an int64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return (types.float64(x) if x == types.int64 else types.float32(types.int32)), generate


@inner(EXACT)
def exp_parts(x):
    """(m, n), m in [0.7, 1.42] a float32 and n an int32, with exp(x) = m 2^n within 2.5e-7, for |x| <
    2^21."""
    r = x * _LOG2E + _ROUND
    n = r - _ROUND
    t = x - n * _LN2_HIGH
    t = t - n * _LN2_LOW
    p = _C5 + t * _C6
    p = _C4 + t * p
    p = _C3 + t * p
    p = _C2 + t * p
    return f32(1) + t * (f32(1) + t * p), i32(to_bits(r) - _ROUND_BITS)


@inner(EXACT)
def pow2(n):
    """2^n as float32 for an int32 n <= 128; 0 below 2^-126, inf for 128."""
    n = i32(n)  # a difference of int32 comes as int64, which would halve the lanes
    n = i32(-127) if n < i32(-127) else n
    return from_bits(i32((n + i32(127)) << i32(23)))


@inner(EXACT)
def exp32(x):
    """exp of a float32, vectorised where Numba's own calls the C library number by number: within
    2.5e-7 of its value, about 0.13 ns per number on one AVX-512 core; 0 where that is below 2^-126, inf above
    3.4e38, NaN for NaN."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    m, n = exp_parts(x)
    return m * pow2(n)


_ROUND64, _ROUND64_BITS = 6755399441055744.0, np.int64(0x4338000000000000)
_LN2_HIGH64, _LN2_LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_TAYLOR = tuple(1.0 / float(math.factorial(k)) for k in range(14))


@inner(EXACT)
def exp64(x):
    """exp of a float64 within 1e-15 of its value; 0 below -708.8, inf above 709.4, NaN for NaN."""
    x = -709.2 if x < -709.2 else x
    x = 709.8 if x > 709.8 else x
    r = x * 1.4426950408889634 + _ROUND64
    n = r - _ROUND64
    t = (x - n * _LN2_HIGH64) - n * _LN2_LOW64
    p = _TAYLOR[12] + t * _TAYLOR[13]
    p = _TAYLOR[11] + t * p
    p = _TAYLOR[10] + t * p
    p = _TAYLOR[9] + t * p
    p = _TAYLOR[8] + t * p
    p = _TAYLOR[7] + t * p
    p = _TAYLOR[6] + t * p
    p = _TAYLOR[5] + t * p
    p = _TAYLOR[4] + t * p
    p = _TAYLOR[3] + t * p
    p = 0.5 + t * p
    p = 1.0 + t * (1.0 + t * p)
    return p * from_bits((to_bits(r) - _ROUND64_BITS + np.int64(1023)) << np.int64(52))


def exp(x):
    """`exp32` of a float32, `exp64` of a float64."""
    raise NotImplementedError("only to be called from a kernel")


@extending.overload(exp)
def _exp(x):
    of_type = exp64 if x == types.float64 else exp32
    return lambda x: of_type(x)


def ordered(bits):
    """The bits of a float32 or float64 as an integer in the order of the numbers, and back."""
    raise NotImplementedError("only to be called from a kernel")


@extending.overload(ordered)
def _ordered(bits):
    if bits == types.int64:
        return lambda bits: bits ^ ((bits >> np.int64(63)) & np.int64(2**63 - 1))
    return lambda bits: i32(bits ^ (i32(bits >> i32(31)) & i32(2**31 - 1)))


@inner(EXACT)
def _highest(row):
    top = ordered(to_bits(row[0]))
    for i in range(row.size):
        top = max(top, ordered(to_bits(row[i])))
    return top


@inner(EXACT)
def _lowest(row):
    low = ordered(to_bits(row[0]))
    for i in range(row.size):
        low = min(low, ordered(to_bits(row[i])))
    return low


@inner(EXACT)
def largest(row):
    """The largest number of a non-empty float32 or float64 row; NaN if it has one whose sign bit is clear.

    Compared as integers in the same order: a float maximum does not vectorise in Numba. The last numbers,
    which do not fill the lanes, are taken with some of those before them.
    """
    if row.size < 64:
        return from_bits(ordered(_highest(row)))
    return from_bits(ordered(max(_highest(row[: row.size // 64 * 64]), _highest(row[row.size - 64 :]))))


@inner(EXACT)
def smallest(row):
    """The smallest number of a non-empty row, none of them NaN; see `largest`."""
    if row.size < 64:
        return from_bits(ordered(_lowest(row)))
    return from_bits(ordered(min(_lowest(row[: row.size // 64 * 64]), _lowest(row[row.size - 64 :]))))
