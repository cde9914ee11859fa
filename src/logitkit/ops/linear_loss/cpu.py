"""One tile of the logits at a time: products by the library, everything else in one fused pass over the tile.

`total` makes a chunk of whole rows of logits, reduces it, turns it into its own gradient in place and
multiplies that into the gradients: three products, and no logits kept. `statistics` reduces the logits tile
by tile and makes them again in the backward: four products, for when what arrives from above is not known
yet.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.gemm import fast_products
from logitkit.ops.kernels import EXACT, exp, from_bits, inner, kernel, largest, to_bits
from logitkit.ops.linear_loss.layer import Layer

MIB = 2**20
# A tile of logits that fits the last-level cache of most CPUs, and the most it may take.
TILE, MOST = 32 * MIB, 56 * MIB
# Fewer rows than this make thin, slow products: then logits are made twice.
FEW = 48
# Rows and columns of the tiles of `statistics`.
FORWARD_ROWS, FORWARD_COLUMNS = 1024, 4096
BACKWARD_ROWS, BACKWARD_BYTES = 4096, 16 * MIB
# One turn of a kernel's loop works on this many columns, or this many rows of them.
SEGMENT, BAND = 2048, 256

f32, i32 = np.float32, np.int32
_LOWEST = f32(-3.0e38)


@intrinsic
def _from_half(typing, x):
    """The float32 with the value of the float16 whose bits are an int16."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _to_half(typing, x):
    """The bits of the float16 nearest to a float32, as an int16."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


def _load(x):
    """A number of a tile as float32: tiles of bfloat16 come as uint16, of float16 as int16."""


def _pack(value, like):
    """A float32 as a number of a tile, rounded to nearest."""


@overload(_load)
def _load_any(x):
    if x == types.uint16:
        return lambda x: from_bits(i32(i32(x) << i32(16)))
    if x == types.int16:
        return lambda x: _from_half(x)
    return lambda x: x


@overload(_pack)
def _pack_any(value, like):
    if like == types.uint16:

        def pack(value, like):
            bits = to_bits(value)
            return np.uint16(i32(bits + i32(0x7FFF) + (i32(bits >> i32(16)) & i32(1))) >> i32(16))

        return pack
    if like == types.int16:
        return lambda value, like: _to_half(value)
    return lambda value, like: value


@inner(EXACT)
def _tanh(x):
    """tanh of a float32 within 3e-7 of its value."""
    s = x * x
    p = f32(-5.70498872745e-3) * s + f32(2.06390887954e-2)
    p = p * s - f32(5.37397155531e-2)
    p = p * s + f32(1.33314422036e-1)
    p = p * s - f32(3.33332819422e-1)
    near = p * s * x + x
    far = f32(1) - f32(2) / (exp(f32(2) * x) + f32(1))
    return near if s < f32(0.390625) else far


@inner()
def _logits(z, products, bias, cap):
    """Logits into z from the products, and the bias (of the same columns, or empty) and softcap (or 0)."""
    for k in range(z.size):
        z[k] = _load(products[k])
    if bias.size:
        for k in range(z.size):
            z[k] += bias[k]
    if cap > f32(0):
        for k in range(z.size):
            z[k] = cap * _tanh(z[k] / cap)


@inner()
def _top(z):
    return largest(z) if z.size else _LOWEST


@inner()
def _sum_exp(z, scale, top):
    total = f32(0)
    for k in range(z.size):
        total += exp(scale * z[k] - top)
    return total


@inner()
def _soft(q, scale, rest):
    """Logits in q to exp(scale q - rest)."""
    near = f32(rest)
    share = f32(math.exp(near - rest))
    for k in range(q.size):
        q[k] = share * exp(scale * q[k] - near)


@kernel()
def _reduce(
    tile,
    bias,
    mix,
    teacher,
    teacher_bias,
    teacher_rest,
    y,
    first,
    scale,
    cap,
    teacher_cap,
    top,
    total,
    at,
    mixed,
):
    """Go on with the statistics of the tile's rows over its columns, which start at column `first`."""
    for i in numba.prange(tile.shape[0]):
        z = np.empty(SEGMENT, f32)
        q = np.empty(SEGMENT, f32)
        row = tile[i]
        for start in range(0, row.size, SEGMENT):
            stop = min(start + SEGMENT, row.size)
            part = z[: stop - start]
            _logits(part, row[start:stop], bias[first + start : first + stop], cap)
            label = y[i] - first - start
            here = label >= 0 and label < part.size
            if mix.size:
                v = mix[first + start : first + stop]
                s = f32(0)
                for k in range(part.size):
                    s += v[k] * part[k]
                mixed[i] += s
            if teacher.size:
                t = q[: stop - start]
                _logits(t, teacher[i][start:stop], teacher_bias[first + start : first + stop], teacher_cap)
                near = f32(teacher_rest[i])
                share = math.exp(near - teacher_rest[i])
                hidden = t[label] if here else f32(0)
                if here:
                    t[label] = part[label]
                s = f32(0)
                for k in range(part.size):
                    # With the label's two logits equal, its term is 0 unless its weight overflows.
                    s += exp(min(scale * t[k] - near, f32(80))) * (part[k] - t[k])
                mixed[i] += share * s
                if here:
                    t[label] = hidden
            if here:
                at[i] = part[label]
                part[label] = _LOWEST
            # Most segments are summed against the first one's largest logit: that fails far above it only.
            s = _sum_exp(part, scale, f32(top[i])) if total[i] > 0.0 else f32(np.inf)
            if not s < f32(1e30):
                highest = max(top[i], np.float64(f32(scale * _top(part))))
                total[i] *= math.exp(top[i] - highest)
                top[i] = highest
                s = _sum_exp(part, scale, f32(highest))
            total[i] += s


@kernel()
def _differentiate(
    tile, bias, mix, teacher, teacher_bias, teacher_rest, y, first, scale, cap, teacher_cap,
    rest, d_rest, d_at, d_mixed, peak,
):  # fmt: skip
    """The tile's products become the loss's gradient in them. peak[b, k] is the most that column k weighs
    in `rest` among the rows of band b, 2 for a label's column, where `peak` is not empty."""
    stripes = (tile.shape[1] + SEGMENT - 1) // SEGMENT
    bands = (tile.shape[0] + BAND - 1) // BAND
    for turn in numba.prange(stripes * bands):
        band = turn // stripes
        start = (turn % stripes) * SEGMENT
        stop = min(start + SEGMENT, tile.shape[1])
        left = first + start
        right = first + stop
        z = np.empty(stop - start, f32)
        e = np.empty(stop - start, f32)
        q = np.empty(stop - start, f32)
        most = np.zeros(stop - start, f32)
        for i in range(band * BAND, min((band + 1) * BAND, tile.shape[0])):
            products = tile[i][start:stop]
            _logits(z, products, bias[left:right], cap)
            label = y[i] - left
            here = label >= 0 and label < z.size
            e[:] = z
            if here:
                e[label] = _LOWEST
            _soft(e, scale, rest[i])
            slope = f32(d_rest[i])
            if peak.size and slope != f32(0):
                for k in range(e.size):
                    most[k] = max(most[k], e[k])
                if here:
                    most[label] = f32(2)
            slope *= scale
            for k in range(e.size):
                e[k] *= slope
            slope = f32(d_mixed[i])
            if mix.size:
                v = mix[left:right]
                for k in range(e.size):
                    e[k] += slope * v[k]
            if teacher.size:
                _logits(q, teacher[i][start:stop], teacher_bias[left:right], teacher_cap)
                if here:
                    q[label] = _LOWEST
                _soft(q, scale, teacher_rest[i])
                for k in range(e.size):
                    e[k] += slope * q[k]
            if here:
                e[label] += f32(d_at[i])
            if cap > f32(0):
                for k in range(e.size):
                    s = z[k] / cap
                    e[k] *= f32(1) - s * s
            for k in range(e.size):
                products[k] = _pack(e[k], products[k])
        if peak.size:
            peak[band, start:stop] = most


@kernel()
def _gather(tile, active, out):
    for i in numba.prange(tile.shape[0]):
        row = tile[i]
        few = out[i]
        for j in range(active.size):
            few[j] = row[active[j]]


_NOTHING, _NOTHING64 = np.zeros(0, np.float32), np.zeros(0)
_NO_TILE = np.zeros((0, 0), np.float32)
_BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
# Half a unit in the last place of 1.
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-11}

_kept = threading.local()


def _scratch(count: int, dtype: torch.dtype, name: str) -> Tensor:
    """Memory that a thread keeps between calls: touching fresh pages costs more than what is done in them."""
    size = count * dtype.itemsize
    held = _kept.__dict__.get(name)
    if held is None or held.numel() < size:
        _kept.__dict__[name] = None
        held = _kept.__dict__[name] = torch.empty(size, dtype=torch.uint8)
    return held[:size].view(dtype)


def _numpy(x: Tensor) -> np.ndarray:
    return x.view(_BITS[x.dtype]).numpy() if x.dtype in _BITS else x.numpy()


def _float(x: Tensor | None) -> np.ndarray:
    return _NOTHING if x is None else x.detach().float().contiguous().numpy()


@dataclass(frozen=True)
class _Slopes:
    """What is known of each row once its loss is: `rest`, and the derivatives of the loss."""

    rest: Tensor
    d_rest: Tensor
    d_at: Tensor
    d_mixed: Tensor


class _Tiles:
    """Tiles of the logits of one call."""

    def __init__(
        self,
        layer: Layer,
        target: Tensor,
        rows: Tensor | None,
        scale: float,
        mix: Tensor | None,
        teacher: Layer | None,
        filter_eps: float | str | None,
    ) -> None:
        self.layer, self.teacher = layer, teacher
        self.x, self.w = layer.features.detach(), layer.weight.detach()
        self.target, self.index = target, rows
        self.count = len(target) if rows is None else len(rows)
        self.classes, self.width = self.w.shape
        self.scale, self.cap = f32(scale), f32(layer.softcap or 0)
        self.teacher_cap = f32((teacher.softcap if teacher is not None else None) or 0)
        self.bias, self.mix = _float(layer.bias), _float(mix)
        self.teacher_bias = _float(teacher.bias if teacher is not None else None)
        self.teacher_rest, self.teacher_at = np.zeros((2, self.count if teacher is not None else 0))
        self.filter_eps = None if mix is not None or teacher is not None else filter_eps
        self.itemsize = self.x.dtype.itemsize + (
            teacher.features.dtype.itemsize if teacher is not None else 0
        )

    @property
    def whole_rows(self) -> int:
        """How many whole rows make a good tile."""
        row = self.classes * self.itemsize
        rows = min(max(TILE // row, min(256, MOST // row)), 2048)
        rows = max(1, rows - rows % 16)
        chunks = -(-self.count // rows)
        return min(rows, (self.count // max(chunks, 1) // 16 + 1) * 16)

    def take(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Rows start to stop of those that count."""
        return x[start:stop] if self.index is None else x[self.index[start:stop]]

    def fill(self, start: int, stop: int, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """Products of those rows with the weights of columns first to last, and the teacher's."""
        tiles: list[Tensor | None] = []
        for layer, name in ((self.layer, "logits"), (self.teacher, "teacher")):
            if layer is None:
                tiles.append(None)
                continue
            x, w = self.take(layer.features.detach(), start, stop), layer.weight.detach()[first:last]
            out = _scratch((stop - start) * (last - first), x.dtype, name).view(stop - start, last - first)
            tiles.append(torch.mm(x, w.T, out=out))
        product = tiles[0]
        assert product is not None
        return product, tiles[1]

    def reduce_teacher(self, tile: Tensor, start: int, stop: int) -> None:
        """The teacher's statistics from whole rows of its logits."""
        run = self.running(stop - start)
        y = self.take(self.target, start, stop).numpy()
        _reduce(
            _numpy(tile), self.teacher_bias, _NOTHING, _NO_TILE, _NOTHING, _NOTHING64, y, 0, self.scale,
            self.teacher_cap, f32(0), *run,
        )  # fmt: skip
        self.teacher_rest[start:stop], self.teacher_at[start:stop] = (s.numpy() for s in _finished(run)[:2])

    def known(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """What the loss is told of the teacher."""
        if self.teacher is None:
            return ()
        return torch.from_numpy(self.teacher_rest[start:stop]), torch.from_numpy(self.teacher_at[start:stop])

    def _arguments(self, tile: Tensor, other: Tensor | None, start: int, stop: int, first: int) -> list[Any]:
        y = self.take(self.target, start, stop).numpy()
        teacher = _NO_TILE if other is None else _numpy(other)
        of_teacher = (teacher, self.teacher_bias, self.teacher_rest[start:stop])
        caps = (self.cap, self.teacher_cap)
        return [_numpy(tile), self.bias, self.mix, *of_teacher, y, first, self.scale, *caps]

    def reduce(
        self, tiles: tuple[Tensor, Tensor | None], start: int, stop: int, first: int, run: Any
    ) -> None:
        """Go on with the statistics `run` = (top, total, at, mixed) of these rows."""
        _reduce(*self._arguments(*tiles, start, stop, first), *(r[start:stop] for r in run))

    def running(self, n: int) -> tuple[np.ndarray, ...]:
        return np.full(n, -1e300), np.zeros(n), np.zeros(n), np.zeros(n)

    def differentiate(
        self, tiles: tuple[Tensor, Tensor | None], start: int, stop: int, first: int, slopes: _Slopes
    ) -> Tensor | None:
        """The products in the tile become gradients; the columns that matter, or None for all."""
        n, columns = tiles[0].shape
        bands = (n + BAND - 1) // BAND if self.filter_eps is not None else 0
        peak = np.zeros((bands, columns if bands else 0), np.float32)
        of_rows = (slopes.rest, slopes.d_rest, slopes.d_at, slopes.d_mixed)
        _differentiate(*self._arguments(*tiles, start, stop, first), *(s.numpy() for s in of_rows), peak)
        return self._active(peak.max(0)) if bands else None

    def _active(self, peak: np.ndarray) -> Tensor | None:
        if self.filter_eps == "auto":
            # The peaks of what is left out may add up to one rounding, spread evenly over the columns.
            allowed = ROUNDOFF[self.x.dtype] * peak.size / self.classes
            power = peak.view(np.int32) >> 23
            mass = np.cumsum(np.bincount(power, weights=peak, minlength=256))
            kept = power >= np.searchsorted(mass, allowed, side="right")
        else:
            kept = peak >= self.filter_eps
        active = np.flatnonzero(kept)
        return torch.from_numpy(active) if active.size < 0.75 * peak.size else None

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """(rest, at, mixed) of the rows that count, in float64."""
        if self.teacher is not None:
            alone = _Tiles(self.teacher, self.target, self.index, float(self.scale), None, None, None)
            self.teacher_rest, self.teacher_at = (s.numpy() for s in alone.statistics()[:2])
        run = self.running(self.count)
        with fast_products():
            for start in range(0, self.count, FORWARD_ROWS):
                stop = min(start + FORWARD_ROWS, self.count)
                for first in range(0, self.classes, FORWARD_COLUMNS):
                    last = min(first + FORWARD_COLUMNS, self.classes)
                    self.reduce(self.fill(start, stop, first, last), start, stop, first, run)
        return _finished(run)


def _finished(run: tuple[np.ndarray, ...]) -> tuple[Tensor, Tensor, Tensor]:
    top, total, at, mixed = run
    return torch.from_numpy(top + np.log(total)), torch.from_numpy(at), torch.from_numpy(mixed)


class _Gradients:
    """The gradients that are wanted, as they grow."""

    def __init__(self, tiles: _Tiles, needs: tuple[bool, bool, bool]) -> None:
        self.tiles = tiles
        x, w = tiles.x, tiles.w
        whole = tiles.index is None
        self.x = (torch.empty_like if whole else torch.zeros_like)(x) if needs[0] else None
        self.w = torch.empty_like(w) if needs[1] else None
        self.bias = torch.zeros(tiles.classes, dtype=torch.float32) if needs[2] else None
        self.fresh = True

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        bias = self.bias if self.bias is None else self.bias.to(self.tiles.x.dtype)
        if self.w is not None and self.tiles.count == 0:
            self.w.zero_()
        return self.x, self.w, bias

    def put_x(self, start: int, stop: int, gradient: Tensor) -> None:
        assert self.x is not None
        if self.tiles.index is None:
            self.x[start:stop] = gradient
        else:
            self.x.index_copy_(0, self.tiles.index[start:stop], gradient)

    def add_w(self, g: Tensor, x: Tensor, first: int, last: int, active: Tensor | None, fresh: bool) -> None:
        """g^T x into the rows first to last of the weight's gradient."""
        if self.bias is not None:
            self.bias[first:last] += g.sum(0, dtype=torch.float32)
        if self.w is None:
            return
        part = self.w[first:last]
        if active is not None and self.tiles.filter_eps != "auto":
            if fresh:
                part.zero_()
            for few in active.split(_piece(self.tiles)):
                part.index_copy_(0, few, part.index_select(0, few).addmm_(_columns(g, few).T, x))
        elif fresh:
            torch.mm(g.T, x, out=part)
        else:
            part.addmm_(g.T, x)

    def of_x(self, g: Tensor, first: int, last: int, active: Tensor | None) -> Tensor:
        """g w of those columns."""
        w = self.tiles.w[first:last]
        if active is None:
            return torch.mm(g, w)
        total = torch.zeros(g.shape[0], w.shape[1], dtype=g.dtype)
        for few in active.split(_piece(self.tiles)):
            total.addmm_(_columns(g, few), w.index_select(0, few))
        return total


def _columns(g: Tensor, few: Tensor) -> Tensor:
    out = _scratch(g.shape[0] * len(few), g.dtype, "columns").view(g.shape[0], len(few))
    _gather(_numpy(g), few.numpy(), _numpy(out))
    return out


def _piece(tiles: _Tiles) -> int:
    """How many rows of the weight are gathered at a time."""
    return max(64, 4 * MIB // (tiles.width * tiles.x.dtype.itemsize))


def _recomputed(
    tiles: _Tiles, slopes: _Slopes, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients from logits made again, a block of columns at a time."""
    into = _Gradients(tiles, needs)
    rows = max(64, min(BACKWARD_ROWS, 12 * MIB // (4 * tiles.width), tiles.count))
    columns = max(256, BACKWARD_BYTES // (rows * tiles.itemsize) // 256 * 256)
    with fast_products():
        for start in range(0, tiles.count, rows):
            stop = min(start + rows, tiles.count)
            xs = tiles.take(tiles.x, start, stop)
            of_x = torch.zeros(xs.shape, dtype=torch.float32) if into.x is not None else None
            few = _Slopes(*(s[start:stop] for s in (slopes.rest, slopes.d_rest, slopes.d_at, slopes.d_mixed)))
            for first in range(0, tiles.classes, columns):
                last = min(first + columns, tiles.classes)
                both = tiles.fill(start, stop, first, last)
                active = tiles.differentiate(both, start, stop, first, few)
                into.add_w(both[0], xs, first, last, active, fresh=start == 0)
                if of_x is not None and active is None and xs.dtype == torch.float32:
                    of_x.addmm_(both[0], tiles.w[first:last])
                elif of_x is not None:
                    of_x += into.of_x(both[0], first, last, active)
            if of_x is not None:
                into.put_x(start, stop, of_x.to(xs.dtype))
    return into.results()


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: _Tiles, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        rest, at, mixed = tiles.statistics()
        ctx.tiles = tiles
        ctx.save_for_backward(x, w, bias, rest)
        return rest, at, mixed

    @staticmethod
    def backward(ctx: Any, d_rest: Tensor, d_at: Tensor, d_mixed: Tensor) -> tuple[Any, ...]:
        no_second_derivatives("linear losses")
        *_, rest = ctx.saved_tensors
        slopes = _Slopes(rest, d_rest.contiguous(), d_at.contiguous(), d_mixed.contiguous())
        return None, *_recomputed(ctx.tiles, slopes, ctx.needs_input_grad[1:])


def statistics(
    layer: Layer,
    target: Int[Tensor, " batch"],
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, " batch"], ...]:
    """(rest, at, mixed) of each row, in float64; see `logitkit.ops.linear_loss.skeleton.statistics`."""
    tiles = _Tiles(layer, target, None, scale, mix, teacher, filter_eps)
    return *_differentiable(tiles), *tiles.known(0, tiles.count)


def _differentiable(tiles: _Tiles) -> tuple[Tensor, Tensor, Tensor]:
    layer = tiles.layer
    if not layer.needs_grad:
        return tiles.statistics()
    return _Statistics.apply(tiles, layer.features, layer.weight, layer.bias)


class _Total(torch.autograd.Function):
    """Loss and gradients in one go over the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        tiles: _Tiles,
        loss: Callable[..., Tensor],
        constants: tuple[Tensor, ...],
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad[3:]
        into = _Gradients(tiles, needs)
        run = tiles.running(tiles.count)
        value = torch.zeros((), dtype=torch.float64)
        found: list[_Slopes] = []
        step = tiles.whole_rows
        with fast_products():
            for start in range(0, tiles.count, step):
                stop = min(start + step, tiles.count)
                both = tiles.fill(start, stop, 0, tiles.classes)
                if both[1] is not None:
                    tiles.reduce_teacher(both[1], start, stop)
                tiles.reduce(both, start, stop, 0, run)
                rows = tuple(r[start:stop] for r in run)
                others = (*tiles.known(start, stop), *(tiles.take(c, start, stop) for c in constants))
                part, slopes = _slopes(loss, _finished(rows), others)
                value += part
                found.append(slopes)
                active = tiles.differentiate(both, start, stop, 0, slopes)
                if into.x is not None:
                    into.put_x(start, stop, into.of_x(both[0], 0, tiles.classes, active))
                if needs[1] or needs[2]:
                    xs = tiles.take(tiles.x, start, stop)
                    into.add_w(both[0], xs, 0, tiles.classes, active, fresh=start == 0)
        names = ("rest", "d_rest", "d_at", "d_mixed")
        ctx.slopes = _Slopes(*(torch.cat([getattr(s, name) for s in found]) for name in names))
        ctx.tiles = tiles
        ctx.gradients = into.results()
        ctx.save_for_backward(x, w, bias)
        stats = _finished(run)
        ctx.mark_non_differentiable(*stats)
        return value, *stats

    @staticmethod
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Any, ...]:
        no_second_derivatives("linear losses")
        ctx.saved_tensors  # noqa: B018 - refuses inputs changed since
        if ctx.gradients is None:
            s = ctx.slopes
            slopes = _Slopes(s.rest, s.d_rest * above, s.d_at * above, s.d_mixed * above)
            return None, None, None, *_recomputed(ctx.tiles, slopes, ctx.needs_input_grad[3:])
        gradients, ctx.gradients = ctx.gradients, None
        if above != 1:
            for g in gradients:
                if g is not None:
                    g.mul_(float(above))
        return None, None, None, *gradients


def _slopes(
    loss: Callable[..., Tensor], stats: tuple[Tensor, Tensor, Tensor], constants: tuple[Tensor, ...]
) -> tuple[Tensor, _Slopes]:
    with torch.enable_grad():
        leaves = [s.detach().requires_grad_() for s in stats]
        value = loss(*leaves, *constants).sum()
        d = torch.autograd.grad(value, leaves, materialize_grads=True)
    return value.detach(), _Slopes(stats[0], *d)


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
    few: tuple[Tensor, ...]
    tiles = _Tiles(layer, target, rows, scale, mix, teacher, filter_eps)
    if layer.needs_grad and _one_pass(tiles):
        value, *found = _Total.apply(tiles, loss, constants, layer.features, layer.weight, layer.bias)
    else:
        found = _differentiable(tiles)
        known = tiles.known(0, tiles.count)
        value = loss(*found, *known, *(tiles.take(c, 0, tiles.count) for c in constants)).sum()
    few = tuple(s.detach() for s in found)
    if rows is not None:
        few = tuple(s.new_zeros(len(target)).index_copy(0, rows, s) for s in few)
    return value, few[0], few[1], few[2]


def _one_pass(tiles: _Tiles) -> bool:
    # float16's gradients can be below its smallest number until a loss scale, not known yet, lifts them.
    thin = tiles.whole_rows < min(FEW, tiles.count)
    return tiles.count > 0 and not thin and tiles.x.dtype != torch.float16
