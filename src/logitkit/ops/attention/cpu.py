"""Blocks of the matrix of weights, one at a time in the same memory; recomputed in the backward."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.ops.attention.weights import Normalized, Power, Sigmoid, Softmax, Softplus, Weight
from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.gemm import fast_products
from logitkit.ops.kernels import EXACT, SUMS, exp, from_bits, i32, inner, kernel, largest, to_bits

# Numbers in a block of scores: 4 MiB of float32, of which a forward holds one and a backward two.
BLOCK = 2**20
# Rows of one head in a block. Fewer waste less on a causal diagonal, more feed the products better.
ROWS = 512
# The least columns of a block.
COLUMNS = 512

f32 = np.float32
HIDDEN = -torch.inf


class _Block:
    """Scores of some rows of some heads against some keys, and which of them are hidden."""

    def __init__(self, memory: Tensor, heads: int, rows: slice, keys: slice, causal: int | None) -> None:
        self.rows, self.keys = rows, keys
        self.shape = heads, rows.stop - rows.start, keys.stop - keys.start
        self.size = self.shape[0] * self.shape[1] * self.shape[2]
        self.scores = memory[: self.size].view(self.shape)
        # Row r of a head sees the first r + reach keys of the block.
        self.reach = self.shape[2] if causal is None else rows.start + causal + 1 - keys.start

    def like(self, memory: Tensor) -> Tensor:
        return memory[: self.size].view(self.shape)

    def hide_future(self) -> None:
        """Write what causality hides into the scores."""
        _, rows, keys = self.shape
        if self.reach < keys:
            seen = torch.ones(rows, keys, dtype=torch.bool).tril(self.reach - 1)
            self.scores.masked_fill_(~seen, HIDDEN)


class _Heads:
    """Some heads at a time, packed in one floating type, and their blocks."""

    def __init__(
        self,
        heads: range,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        mask_of: list[int] | None,
        causal: int | None,
        scale: float | Tensor,
    ) -> None:
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.heads, self.causal = heads, causal
        self.group = len(query) // len(key)
        own = slice(heads.start, heads.stop)
        self.scale = scale[own] if isinstance(scale, Tensor) and len(scale) > 1 else scale
        self.q = (query[own].to(dtype) * self.scale).contiguous()
        self.k, self.v = (self._own(x).to(dtype).contiguous() for x in (key, value))
        self.mask = None
        if mask is not None and mask_of is not None:
            which = mask_of[heads.start : heads.stop]
            if which == list(range(which[0], which[0] + len(which))):
                self.mask = mask[which[0] : which[-1] + 1]
            else:
                self.mask = mask[which[:1] if len(set(which)) == 1 else which]

    def _own(self, x: Tensor) -> Tensor:
        if self.group == 1:
            return x[self.heads.start : self.heads.stop]
        return x[[h // self.group for h in self.heads]]

    def scale_of(self, rows: slice) -> float | Tensor:
        return self.scale[:, rows] if isinstance(self.scale, Tensor) else self.scale

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add the part of each head to its key-value head's total."""
        if self.group == 1:
            total[self.heads.start : self.heads.stop] = part
        else:
            for h, x in zip(self.heads, part, strict=True):
                total[h // self.group] += x

    def row_blocks(self) -> Iterator[slice]:
        n = self.q.shape[1]
        return (slice(i, min(i + ROWS, n)) for i in range(0, n, ROWS))

    def blocks(self, memory: Tensor, rows: slice) -> Iterator[_Block]:
        """The blocks of these rows that have a visible key, with their scores."""
        keys = self.k.shape[1]
        if self.causal is not None:
            keys = max(0, min(keys, rows.stop + self.causal))
        step = _columns(len(self.heads))
        for j in range(0, keys, step):
            block = _Block(memory, len(self.heads), rows, slice(j, min(j + step, keys)), self.causal)
            mask = self._mask(block)
            if mask is not None and mask.dtype == torch.bool:
                if not mask.any():
                    continue
                mask = None if mask.all() else mask
            torch.bmm(self.q[:, rows], self.k[:, block.keys].transpose(1, 2), out=block.scores)
            if mask is not None and mask.dtype == torch.bool:
                block.scores.masked_fill_(~mask, HIDDEN)
            elif mask is not None:
                block.scores.add_(mask)
            yield block

    def _mask(self, block: _Block) -> Tensor | None:
        mask = self.mask
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, block.rows]
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, block.keys]
        return mask


def _columns(heads: int) -> int:
    return max(COLUMNS, BLOCK // (ROWS * heads))


def _chunks(heads: int, rows: int, keys: int) -> Iterator[range]:
    """Heads that share a block."""
    some = max(1, BLOCK // max(1, min(ROWS, rows) * min(COLUMNS, keys)))
    return (range(h, min(h + some, heads)) for h in range(0, heads, some))


# Fresh memory costs as much as the arithmetic of a block, so each thread keeps what it has used.
_kept = threading.local()


def _memory(name: str, chunk: range, rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    size = len(chunk) * min(ROWS, rows) * min(_columns(len(chunk)), keys)
    held: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("held", {})
    if (name, dtype) not in held or held[name, dtype].numel() < size:
        with torch.inference_mode(False):
            held[name, dtype] = torch.empty(size, dtype=dtype)
    return held[name, dtype]


# Scores to weights, in place.
#
# A normalised weight keeps, per row, the largest score so far and the sum of the weights relative to it; the
# output so far is scaled down when a larger score comes.


class _Plain:
    """Weights that need nothing of their row, by the weight's own torch functions."""

    def __init__(self, weight: Any, heads: _Heads) -> None:
        self.weight = weight

    def forward(self, block: _Block, out: Tensor) -> None:
        block.hide_future()
        hidden = block.scores == HIDDEN
        w = self.weight.weigh(block.scores.masked_fill_(hidden, 0))
        block.scores.copy_(w.masked_fill_(hidden, 0))

    def finish(self, rows: slice, out: Tensor) -> None:
        pass

    def backward(self, block: _Block, back: Tensor, out: Tensor, grad: Tensor) -> None:
        """Turn the scores into weights, and the gradient in the weights into that in the scores."""
        block.hide_future()
        hidden = block.scores == HIDDEN
        s = block.scores.masked_fill_(hidden, 0)
        back.mul_(self.weight.slope(s)).masked_fill_(hidden, 0)
        block.scores.copy_(self.weight.weigh(s).masked_fill_(hidden, 0))


class _Rows(_Plain):
    """Normalised weights by the weight's own torch functions."""

    def __init__(self, weight: Any, heads: _Heads) -> None:
        super().__init__(weight, heads)
        self.peak = torch.full((*heads.q.shape[:2], 1), -torch.inf, dtype=heads.q.dtype)
        self.total = torch.zeros_like(self.peak)

    def forward(self, block: _Block, out: Tensor) -> None:
        block.hide_future()
        hidden = block.scores == HIDDEN
        s = block.scores.masked_fill_(hidden, 0)
        top = self.weight.size(s).masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
        old = self.peak[:, block.rows]
        new = torch.maximum(old, top)
        peak = torch.where(new == -torch.inf, 0, new)
        first = old == -torch.inf
        shrink = torch.where(first, 0, self.weight.weigh(torch.where(first, 0, old), peak))
        w = self.weight.weigh(s, peak).masked_fill_(hidden, 0)
        self.total[:, block.rows] = self.total[:, block.rows] * shrink + w.sum(-1, keepdim=True)
        self.peak[:, block.rows] = new
        out.mul_(shrink)
        s.copy_(w)

    def finish(self, rows: slice, out: Tensor) -> None:
        total, peak = self.total[:, rows], self.peak[:, rows]
        peak.masked_fill_(peak == -torch.inf, 0)
        total += self.weight.floor(peak)
        out.div_(total.masked_fill_(total == 0, 1))

    def backward(self, block: _Block, back: Tensor, out: Tensor, grad: Tensor) -> None:
        block.hide_future()
        hidden = block.scores == HIDDEN
        s = block.scores.masked_fill_(hidden, 0)
        peak, total = self.peak[:, block.rows], self.total[:, block.rows]
        back.sub_((out * grad).sum(-1, keepdim=True)).mul_(self.weight.slope(s, peak)).div_(total)
        back.masked_fill_(hidden, 0)
        s.copy_((self.weight.weigh(s, peak) / total).masked_fill_(hidden, 0))


class _Sigmoid(_Plain):
    def forward(self, block: _Block, out: Tensor) -> None:
        _sigmoid(*_flat(block), f32(self.weight.bias))

    def backward(self, block: _Block, back: Tensor, out: Tensor, grad: Tensor) -> None:
        _sigmoid_back(*_flat(block), _matrix(back), f32(self.weight.bias))


class _Fused(_Rows):
    """The softmax, softplus and power weights in one pass over the block."""

    def __init__(self, weight: Any, heads: _Heads) -> None:
        super().__init__(weight, heads)
        self.kind, self.power = _KINDS[type(weight)], int(getattr(weight, "power", 1))

    @staticmethod
    def takes(weight: Any) -> bool:
        power = getattr(weight, "power", 1)
        return type(weight) in _KINDS and power == int(power) and power < 32

    def forward(self, block: _Block, out: Tensor) -> None:
        peak, total = (x[:, block.rows, 0].numpy() for x in (self.peak, self.total))
        _weigh(*_flat(block), self.kind, self.power, peak, total, _matrix(out))

    def backward(self, block: _Block, back: Tensor, out: Tensor, grad: Tensor) -> None:
        peak, total = (x[:, block.rows, 0].numpy() for x in (self.peak, self.total))
        mean = (out * grad).sum(-1).numpy()
        _weigh_back(*_flat(block), self.kind, self.power, peak, total, _matrix(back), mean)


def _matrix(x: Tensor) -> np.ndarray:
    return x.view(-1, x.shape[-1]).numpy()


def _flat(block: _Block) -> tuple[np.ndarray, int, int]:
    return _matrix(block.scores), block.shape[1], block.reach


@inner(EXACT)
def _seen(row, rows, reach, keys):
    return min(keys, max(0, reach + row % rows))


@kernel()
def _sigmoid(s, rows, reach, bias):
    for r in numba.prange(s.shape[0]):
        seen = _seen(r, rows, reach, s.shape[1])
        x = s[r, :seen]
        for j in range(x.size):
            x[j] = f32(1) / (f32(1) + exp(-(x[j] + bias)))
        s[r, seen:] = f32(0)


@kernel()
def _sigmoid_back(s, rows, reach, back, bias):
    for r in numba.prange(s.shape[0]):
        seen = _seen(r, rows, reach, s.shape[1])
        x = s[r, :seen]
        g = back[r, :seen]
        for j in range(x.size):
            w = f32(1) / (f32(1) + exp(-(x[j] + bias)))
            x[j] = w
            g[j] *= w * (f32(1) - w)
        s[r, seen:] = f32(0)
        back[r, seen:] = f32(0)


_EXP, _SOFTPLUS, _POWER = 0, 1, 2
_KINDS: dict[type, int] = {Softmax: _EXP, Softplus: _SOFTPLUS, Power: _POWER}
# Below this softplus is exp to float32's precision.
_LOW = f32(-15.942385)
_SIGN_OFF = i32(0x7FFFFFFF)
_NONE = f32(-np.inf)


@inner(EXACT)
def _furthest(x, top):
    t = to_bits(top)
    for j in range(x.size):
        b = to_bits(x[j]) & _SIGN_OFF if x[j] != _NONE else i32(0)
        t = b if b > t else t
    return from_bits(i32(t))


@inner(EXACT)
def _softplus(x):
    """(softplus(x), sigmoid(x)) within 4e-7 of their values."""
    e = exp(-abs(x))
    # log(1 + e) = 2 artanh(e / (2 + e))
    z = e / (f32(2) + e)
    q = z * z
    p = f32(1 / 11) + q * f32(1 / 13)
    p = f32(1 / 9) + q * p
    p = f32(1 / 7) + q * p
    p = f32(1 / 5) + q * p
    p = f32(1 / 3) + q * p
    log1p = f32(2) * z * (f32(1) + q * p)
    unit = f32(1) / (f32(1) + e)
    return (x if x > f32(0) else f32(0)) + log1p, unit if x > f32(0) else e * unit


@inner(EXACT)
def _raised(y, power):
    """y^power for a power of 0 to 31, with no loop that would keep the one around it from vectorising."""
    w = y if power & 1 else f32(1)
    y = y * y
    w = w * y if power & 2 else w
    y = y * y
    w = w * y if power & 4 else w
    y = y * y
    w = w * y if power & 8 else w
    y = y * y
    return w * y if power & 16 else w


@inner(SUMS)
def _exp_row(x, top, power):
    total = f32(0)
    for j in range(x.size):
        w = exp(power * (x[j] - top))
        x[j] = w
        total += w
    return total


@inner(SUMS)
def _softplus_row(x, unit, power):
    total = f32(0)
    for j in range(x.size):
        w = _raised(_softplus(x[j])[0] * unit, power)
        x[j] = w
        total += w
    return total


@inner(SUMS)
def _power_row(x, unit, power):
    total = f32(0)
    for j in range(x.size):
        y = x[j] * unit if x[j] != _NONE else f32(0)
        w = _raised(y, power)
        x[j] = w
        total += w
    return total


@kernel()
def _weigh(s, rows, reach, kind, power, peak, total, out):
    for r in numba.prange(s.shape[0]):
        seen = _seen(r, rows, reach, s.shape[1])
        h, i = r // rows, r % rows
        x = s[r, :seen]
        old = peak[h, i]
        top = old
        if kind == _POWER:
            top = _furthest(x, max(old, f32(0)))
        elif seen:
            top = largest(x)
            top = old if old > top else top  # which a NaN survives
        if top == _NONE:
            seen = 0
        else:
            if kind == _POWER:
                unit = f32(1) / top if top > f32(0) else f32(1)
                shrink = _raised(max(old, f32(0)) * unit, power)
                part = _power_row(x, unit, power)
            elif kind == _SOFTPLUS and top > _LOW:
                unit = f32(1) / _softplus(top)[0]
                shrink = _raised(_softplus(old)[0] * unit, power)
                part = _softplus_row(x, unit, power)
            else:
                shrink = exp(f32(power) * (old - top))
                part = _exp_row(x, top, f32(power))
            peak[h, i] = top
            total[h, i] = total[h, i] * shrink + part
            o = out[r]
            for j in range(o.size):
                o[j] *= shrink
        s[r, seen:] = f32(0)


@inner(SUMS)
def _exp_row_back(x, g, top, power, share, mean):
    for j in range(x.size):
        w = exp(power * (x[j] - top)) * share
        x[j] = w
        g[j] = power * w * (g[j] - mean)


@inner(SUMS)
def _softplus_row_back(x, g, unit, power, share, mean):
    slope = f32(power) * unit * share
    for j in range(x.size):
        value, sigmoid = _softplus(x[j])
        y = value * unit
        w = _raised(y, power - 1)
        x[j] = w * y * share
        g[j] = w * sigmoid * slope * (g[j] - mean)


@inner(SUMS)
def _power_row_back(x, g, unit, power, share, mean):
    slope = f32(power) * unit * share
    for j in range(x.size):
        y = x[j] * unit if x[j] != _NONE else f32(0)
        w = _raised(y, power - 1)
        x[j] = w * y * share
        g[j] = w * slope * (g[j] - mean)


@kernel()
def _weigh_back(s, rows, reach, kind, power, peak, total, back, mean):
    for r in numba.prange(s.shape[0]):
        seen = _seen(r, rows, reach, s.shape[1])
        h, i = r // rows, r % rows
        x = s[r, :seen]
        g = back[r, :seen]
        top = peak[h, i]
        share = f32(1) / total[h, i]
        if kind == _POWER:
            _power_row_back(x, g, f32(1) / top if top > f32(0) else f32(1), power, share, mean[h, i])
        elif kind == _SOFTPLUS and top > _LOW:
            _softplus_row_back(x, g, f32(1) / _softplus(top)[0], power, share, mean[h, i])
        else:
            _exp_row_back(x, g, top, f32(power), share, mean[h, i])
        s[r, seen:] = f32(0)
        back[r, seen:] = f32(0)


def _weights(weight: Weight, heads: _Heads) -> Any:
    if heads.q.dtype == torch.float32:
        if type(weight) is Sigmoid:
            return _Sigmoid(weight, heads)
        if _Fused.takes(weight):
            return _Fused(weight, heads)
    return (_Rows if isinstance(weight, Normalized) else _Plain)(weight, heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, mask_of, causal, scale, weight):
        result = query.new_empty(*query.shape[:2], value.shape[2])
        keep = any(ctx.needs_input_grad[:3])
        states = []
        with fast_products():
            for chunk in _chunks(len(query), query.shape[1], key.shape[1]):
                heads = _Heads(chunk, query, key, value, mask, mask_of, causal, scale)
                weights = _weights(weight, heads)
                memory = _memory("scores", chunk, query.shape[1], key.shape[1], heads.q.dtype)
                for rows in heads.row_blocks():
                    out = heads.v.new_zeros(len(chunk), rows.stop - rows.start, value.shape[2])
                    for block in heads.blocks(memory, rows):
                        weights.forward(block, out)
                        out.baddbmm_(block.scores, heads.v[:, block.keys])
                    weights.finish(rows, out)
                    result[chunk.start : chunk.stop, rows] = out
                states.append(weights if keep else None)
        ctx.save_for_backward(query, key, value, mask, result)
        ctx.settings = mask_of, causal, scale
        ctx.states = states
        return result

    @staticmethod
    def backward(ctx, grad):
        no_second_derivatives("attention")
        query, key, value, mask, result = ctx.saved_tensors
        mask_of, causal, scale = ctx.settings
        want_q, want_k, want_v = ctx.needs_input_grad[:3]
        # Sums over blocks and over the queries' heads are kept in the type the products have.
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        dq = torch.empty_like(query) if want_q else None
        dk, dv = (
            torch.zeros_like(x, dtype=wide) if want else None for x, want in ((key, want_k), (value, want_v))
        )
        with fast_products():
            chunks = _chunks(len(query), query.shape[1], key.shape[1])
            for chunk, weights in zip(chunks, ctx.states, strict=True):
                heads = _Heads(chunk, query, key, value, mask, mask_of, causal, scale)
                memory = _memory("scores", chunk, query.shape[1], key.shape[1], wide)
                second = _memory("back", chunk, query.shape[1], key.shape[1], wide)
                k_sum, v_sum = (
                    torch.zeros_like(x) if want else None
                    for x, want in ((heads.k, want_k), (heads.v, want_v))
                )
                for rows in heads.row_blocks():
                    g = grad[chunk.start : chunk.stop, rows].to(wide).contiguous()
                    out = result[chunk.start : chunk.stop, rows].to(wide)
                    q_sum = torch.zeros_like(heads.q[:, rows]) if want_q else None
                    for block in heads.blocks(memory, rows):
                        back = block.like(second)
                        torch.bmm(g, heads.v[:, block.keys].transpose(1, 2), out=back)
                        weights.backward(block, back, out, g)
                        if v_sum is not None:
                            v_sum[:, block.keys].baddbmm_(block.scores.transpose(1, 2), g)
                        if k_sum is not None:
                            k_sum[:, block.keys].baddbmm_(back.transpose(1, 2), heads.q[:, rows])
                        if q_sum is not None:
                            q_sum.baddbmm_(back, heads.k[:, block.keys])
                    if dq is not None:
                        dq[chunk.start : chunk.stop, rows] = q_sum * heads.scale_of(rows)
                for total, part in ((dk, k_sum), (dv, v_sum)):
                    if total is not None:
                        heads.add_to(total, part)
        return (
            dq,
            None if dk is None else dk.to(key.dtype),
            None if dv is None else dv.to(value.dtype),
            *[None] * 5,
        )


def attention(
    query: Float[Tensor, "heads queries dim"],
    key: Float[Tensor, "kv_heads keys dim"],
    value: Float[Tensor, "kv_heads keys out"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
    mask_of: list[int] | None,
    causal: int | None,
    scale: float | Tensor,
    weight: Weight,
) -> Float[Tensor, "heads queries out"]:
    return _Attention.apply(query, key, value, mask, mask_of, causal, scale, weight)
