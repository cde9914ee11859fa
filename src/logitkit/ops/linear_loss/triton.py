"""Tiles of the logits in a GPU's registers: products and statistics in one pass, as in Cut Cross-Entropy.

The forward keeps nothing but the statistics. The backward makes the logits of a block of columns again,
writes their gradient into one buffer, and multiplies that into the gradients of features and weight, skipping
the tiles in which it is too small to matter. Nothing is added atomically, so results are the same every time.

Block sizes are those customary on Ampere and Hopper. They were not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.linear_loss.layer import Layer

# Columns whose statistics one program reduces, and bytes of the buffer of gradients.
PART, BUFFER = 4096, 256 * 2**20
# Half a unit in the last place of 1.
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}


@triton.jit
def _tanh(x):
    """tanh within 3e-7 of its value."""
    s = x * x
    p = -5.70498872745e-3 * s + 2.06390887954e-2
    p = p * s - 5.37397155531e-2
    p = p * s + 1.33314422036e-1
    p = p * s - 3.33332819422e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return tl.where(s < 0.390625, p * s * x + x, far)


@triton.jit
def _logits(
    X, W, BIAS, rows, columns, n, classes, width, cap,
    BIASED: tl.constexpr, CAPPED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the logits in float32; any numbers beyond the matrix."""
    z = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(
            X + rows[:, None].to(tl.int64) * width + d[None, :],
            mask=(rows[:, None] < n) & (d[None, :] < width),
            other=0.0,
        )
        w = tl.load(
            W + columns[None, :].to(tl.int64) * width + d[:, None],
            mask=(columns[None, :] < classes) & (d[:, None] < width),
            other=0.0,
        )
        z += tl.dot(x, w, input_precision=PRECISION)
    if BIASED:
        z += tl.load(BIAS + columns, mask=columns < classes, other=0.0).to(tl.float32)[None, :]
    if CAPPED:
        z = cap * _tanh(z / cap)
    return z


@triton.jit
def _reduce(
    X, W, BIAS, MIX, Y, TOP, TOTAL, AT, MIXED, n, classes, width, part, scale, cap,
    BIASED: tl.constexpr, CAPPED: tl.constexpr, MIXES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Statistics of some rows over one part of the columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * part
    y = tl.load(Y + rows, mask=rows < n, other=-1)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    at = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS], tl.float32)
    for start in range(begin, tl.minimum(begin + part, classes), COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        z = _logits(
            X, W, BIAS, rows, columns, n, classes, width, cap,
            BIASED, CAPPED, ROWS, COLUMNS, BLOCK_D, PRECISION,
        )  # fmt: skip
        here = columns[None, :] == y[:, None]
        inside = columns[None, :] < classes
        at += tl.sum(tl.where(here & inside, z, 0.0), 1)
        if MIXES:
            v = tl.load(MIX + columns, mask=columns < classes, other=0.0)
            mixed += tl.sum(tl.where(inside, z * v[None, :], 0.0), 1)
        s = tl.where(inside & (columns[None, :] != y[:, None]), scale * z, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        # A row that has seen nothing yet has no top; any number does in its place.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        top = higher
    place = tl.program_id(1).to(tl.int64) * n + rows
    tl.store(TOP + place, top, mask=rows < n)
    tl.store(TOTAL + place, total, mask=rows < n)
    tl.store(AT + place, at, mask=rows < n)
    tl.store(MIXED + place, mixed, mask=rows < n)


@triton.jit
def _differentiate(
    X, W, BIAS, MIX, Y, REST, D_REST, D_AT, D_MIXED, G, PEAK, n, classes, width, first, stride, scale, cap,
    BIASED: tl.constexpr, CAPPED: tl.constexpr, MIXES: tl.constexpr,
    PEAKS: tl.constexpr, SUMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The loss's gradient in a tile of the logits' products. PEAK: the most that one of the tile's columns
    (or with SUMS, all of them together) weighs in `rest` of any row; 2 where a label is."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = first + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    z = _logits(
        X, W, BIAS, rows, columns, n, classes, width, cap,
        BIASED, CAPPED, ROWS, COLUMNS, BLOCK_D, PRECISION,
    )  # fmt: skip
    y = tl.load(Y + rows, mask=rows < n, other=-1)
    rest = tl.load(REST + rows, mask=rows < n, other=float("inf"))
    d_rest = tl.load(D_REST + rows, mask=rows < n, other=0.0)
    d_at = tl.load(D_AT + rows, mask=rows < n, other=0.0)
    here = columns[None, :] == y[:, None]
    inside = (columns[None, :] < classes) & (rows[:, None] < n)
    e = tl.where(inside & (columns[None, :] != y[:, None]), tl.exp(scale * z - rest[:, None]), 0.0)
    if PEAKS:
        of_row = tl.sum(e, 1) if SUMS else tl.max(e, 1)
        labelled = tl.max(tl.where(here & inside, 1.0, 0.0), 1)
        of_row = tl.where(d_rest != 0.0, tl.maximum(of_row, 2.0 * labelled), 0.0)
        tl.store(PEAK + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.max(of_row, 0))
    g = e * (scale * d_rest)[:, None]
    if MIXES:
        v = tl.load(MIX + columns, mask=columns < classes, other=0.0)
        d_mixed = tl.load(D_MIXED + rows, mask=rows < n, other=0.0)
        g += d_mixed[:, None] * v[None, :]
    g += tl.where(here, d_at[:, None], 0.0)
    if CAPPED:
        s = z / cap
        g *= 1.0 - s * s
    place = G + rows[:, None].to(tl.int64) * stride + (columns - first)[None, :]
    tl.store(place, g.to(G.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    A, B, OUT, KEEP, m, k, width, a_row, a_column, keep_row, keep_column,
    ADD: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, OUT_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """OUT = A B, or OUT + A B, without the tiles (ROWS, INNER) of A that KEEP says 0 to."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * OUT_D + tl.arange(0, OUT_D)
    place = OUT + rows[:, None].to(tl.int64) * width + d[None, :]
    within = (rows[:, None] < m) & (d[None, :] < width)
    total = tl.zeros([ROWS, OUT_D], tl.float32)
    if ADD:
        total += tl.load(place, mask=within, other=0.0).to(tl.float32)
    for block in range(tl.cdiv(k, INNER)):
        begin = block * INNER
        end = tl.minimum(begin + INNER, k)
        if SKIP:
            keep = tl.load(KEEP + tl.program_id(0) * keep_row + block * keep_column)
            end = tl.where(keep != 0, end, begin)
        for start in range(begin, end, STEP):
            inner = start + tl.arange(0, STEP)
            a = tl.load(
                A + rows[:, None].to(tl.int64) * a_row + inner[None, :].to(tl.int64) * a_column,
                mask=(rows[:, None] < m) & (inner[None, :] < k),
                other=0.0,
            )
            b = tl.load(
                B + inner[:, None].to(tl.int64) * width + d[None, :],
                mask=(inner[:, None] < k) & (d[None, :] < width),
                other=0.0,
            )
            total += tl.dot(a, b, input_precision=PRECISION)
    tl.store(place, total.to(OUT.dtype.element_ty), mask=within)


def _tiles(dtype: torch.dtype) -> dict[str, int]:
    """Sizes of the tiles of logits; stages of them fit 100 KiB of shared memory."""
    if dtype == torch.float32:
        return {"ROWS": 64, "COLUMNS": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3}
    return {"ROWS": 128, "COLUMNS": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}


@dataclass(frozen=True)
class _Call:
    """The options of one call."""

    scale: float
    cap: float
    mix: Tensor | None
    filter_eps: float | str | None

    def settings(self, x: Tensor, bias: Tensor | None) -> dict[str, Any]:
        return {
            "BIASED": bias is not None,
            "CAPPED": self.cap > 0,
            "MIXES": self.mix is not None,
            # Not the GPU's short float32, whose error is 1e-3.
            "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
            **_tiles(x.dtype),
        }


def _reduced(call: _Call, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, ...]:
    """(rest, at, mixed) in float64."""
    n, classes = len(x), len(w)
    parts, settings = triton.cdiv(classes, PART), call.settings(x, bias)
    found = x.new_empty(4, parts, n, dtype=torch.float32)
    # A tensor that is not there is not read; any pointer does in its place.
    b, mix = (x if t is None else t for t in (bias, call.mix))
    with torch.cuda.device_of(x):
        _reduce[(triton.cdiv(n, settings["ROWS"]), parts)](
            x, w, b, mix, target, *found, n, classes, x.shape[1], PART, call.scale, call.cap, **settings
        )
    top, total, at, mixed = found.double()
    highest = top.amax(0)
    rest = highest + (total * torch.exp(top - highest)).sum(0).log()
    return rest, at.sum(0), mixed.sum(0)


def _multiply(
    a: Tensor, b: Tensor, out: Tensor, add: bool, keep: Tensor | None, tile: tuple[int, int]
) -> None:
    """out = a b, or out + a b with `add`, without the tiles of `a` that `keep` says 0 to."""
    short = b.dtype != torch.float32
    flags, strides = (a, (0, 0)) if keep is None else (keep, keep.stride())
    columns = 128 if short else 64
    grid = triton.cdiv(len(a), tile[0]), triton.cdiv(b.shape[1], columns)
    _product[grid](
        a, b, out, flags, *a.shape, b.shape[1], *a.stride(), *strides,
        ADD=add, SKIP=keep is not None, ROWS=tile[0], INNER=tile[1], STEP=64 if short else 32,
        OUT_D=columns, PRECISION="tf32" if short else "ieee", num_warps=8 if short else 4, num_stages=3,
    )  # fmt: skip


def _gradients(
    call: _Call, saved: tuple[Tensor, ...], above: tuple[Tensor, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of features, weight and bias, as far as they are needed, a block of columns at a time."""
    x, w, bias, target, rest = saved
    (n, width), classes = x.shape, len(w)
    if n == 0:
        of_x, of_w, of_bias = (
            torch.zeros_like(t) if need else None for t, need in zip((x, w, bias), needs, strict=True)
        )
        return of_x, of_w, of_bias
    settings = call.settings(x, bias)
    rows, columns = settings["ROWS"], settings["COLUMNS"]
    # What rounding takes from `rest`, the slope gives back.
    near = rest.float()
    slopes = above[0] * torch.exp(near.double() - rest), above[1], above[2]
    d = [near, *(s.float().contiguous() for s in slopes)]
    b, mix = (x if t is None else t for t in (bias, call.mix))
    block = min(max(1, BUFFER // (n * x.element_size() * columns)), triton.cdiv(classes, columns)) * columns
    buffer = x.new_empty(n, block)
    eps = None if call.mix is not None else call.filter_eps
    of_x = x.new_empty(n, width, dtype=torch.float32) if needs[0] else None
    of_w = torch.empty_like(w) if needs[1] else None
    of_bias = x.new_empty(classes, dtype=torch.float32) if needs[2] else None
    with torch.cuda.device_of(x):
        for first in range(0, classes, block):
            last = min(first + block, classes)
            grid = triton.cdiv(n, rows), triton.cdiv(last - first, columns)
            peak = x.new_empty(grid if eps is not None else (1, 1), dtype=torch.float32)
            _differentiate[grid](
                x, w, b, mix, target, *d, buffer, peak, n, classes, width, first, block, call.scale, call.cap,
                PEAKS=eps is not None, SUMS=eps == "auto", **settings,
            )  # fmt: skip
            keep = None
            if eps is not None:
                # With "auto", all that is left out of a row adds up to one rounding.
                least = ROUNDOFF[x.dtype] * columns / classes if eps == "auto" else float(eps)
                keep = (peak >= least).to(torch.int8)
            g = buffer[:, : last - first]
            if of_x is not None:
                _multiply(g, w[first:last], of_x, first > 0, keep, (rows, columns))
            if of_w is not None:
                both = None if keep is None or eps == "auto" else keep.T
                _multiply(g.T, x, of_w[first:last], False, both, (columns, rows))
            if of_bias is not None:
                of_bias[first:last] = g.sum(0, dtype=torch.float32)
    return (
        None if of_x is None else of_x.to(x.dtype),
        of_w,
        None if of_bias is None else of_bias.to(x.dtype),
    )


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, target: Tensor, x: Tensor, w: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        x, w = x.contiguous(), w.contiguous()
        bias = None if bias is None else bias.contiguous()
        found = _reduced(call, x, w, bias, target)
        ctx.call = call
        ctx.save_for_backward(x, w, bias, target, found[0])
        return found

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivatives("linear losses")
        return None, None, *_gradients(ctx.call, ctx.saved_tensors, above, ctx.needs_input_grad[2:])


def statistics(
    layer: Layer,
    target: Int[Tensor, " batch"],
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, " batch"], ...]:
    """(rest, at, mixed) of each row, in float64; see `logitkit.ops.linear_loss.skeleton.statistics`. Takes no
    teacher."""
    assert teacher is None
    mix = None if mix is None else mix.float().contiguous()
    call = _Call(scale, float(layer.softcap or 0), mix, filter_eps)
    return _Statistics.apply(call, target.contiguous(), layer.features, layer.weight, layer.bias)


def total(
    loss: Callable[..., Float[Tensor, " rows"]],
    layer: Layer,
    target: Int[Tensor, " batch"],
    constants: tuple[Float[Tensor, " batch"], ...],
    rows: Int[Tensor, " kept"] | None = None,
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Sum over `rows` of the loss, and the statistics (0 elsewhere); see
    `logitkit.ops.linear_loss.skeleton.total`."""
    every = rows is None
    rows = torch.arange(len(target), device=target.device) if rows is None else rows
    found = statistics(layer if every else layer.rows(rows), target[rows], scale, mix, teacher, filter_eps)
    value = loss(*found, *(c[rows] for c in constants)).sum()
    rest, at, mixed = (s.new_zeros(target.shape).index_copy(0, rows, s.detach()) for s in found)
    return value, rest, at, mixed
