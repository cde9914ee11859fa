"""Blocks of the matrix of weights in a GPU's shared memory, with or without causality; recomputed in the
backward.

The sizes of blocks are those customary on Ampere and Hopper. They were not measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.ops.attention.weights import Sigmoid, Weight
from logitkit.ops.dispatch import no_second_derivatives

_LOG2E = 1.4426950408889634


@triton.jit
def _load(x, rows, count, columns, width: tl.constexpr):
    """Rows of a contiguous (count, width) matrix, zeros beyond it."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(x + rows[:, None].to(tl.int64) * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(x, block, rows, count, columns, width: tl.constexpr):
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    place = x + rows[:, None].to(tl.int64) * width + columns[None, :]
    tl.store(place, block.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _sees(rows, keys, n_keys, offset, CAUSAL: tl.constexpr):
    seen = keys[None, :] < n_keys
    if CAUSAL:
        seen = seen & (keys[None, :] <= rows[:, None] + offset)
    return seen


@triton.jit
def _weights(
    q,
    k,
    rows,
    keys,
    n_keys,
    scale,
    bias,
    offset,
    log_total,
    CAUSAL: tl.constexpr,
    SIGMOID: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Final weights of a block, as the backward needs them."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    w = 1.0 / (1.0 + tl.exp2(-(s + bias))) if SIGMOID else tl.exp2(s - log_total[:, None])
    return tl.where(_sees(rows, keys, n_keys, offset, CAUSAL), w, 0.0)


@triton.jit
def _forward(
    Q, K, V, OUT, LOG_TOTAL, n, n_keys, group, scale, bias, offset,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    Q += head * n * D
    OUT += head * n * DV
    LOG_TOTAL += head * n
    K += head // group * n_keys * D
    V += head // group * n_keys * DV
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    q = _load(Q, rows, n, d, D)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    end = n_keys
    if CAUSAL:
        end = tl.minimum(n_keys, (tl.program_id(0) + 1) * ROWS + offset)
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load(K, keys, n_keys, d, D)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = _sees(rows, keys, n_keys, offset, CAUSAL)
        if SIGMOID:
            w = tl.where(seen, 1.0 / (1.0 + tl.exp2(-(s + bias))), 0.0)
        else:
            s = tl.where(seen, s, -float("inf"))
            higher = tl.maximum(top, tl.max(s, 1))
            # A row that has seen nothing yet has no top; any number does in its place.
            base = tl.where(higher == -float("inf"), 0.0, higher)
            w = tl.exp2(s - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(w, 1)
            out = out * shrink[:, None]
            top = higher
        v = _load(V, keys, n_keys, dv, DV)
        out += tl.dot(w.to(v.dtype), v, input_precision=PRECISION)
    if not SIGMOID:
        nothing = total == 0.0
        total = tl.where(nothing, 1.0, total)
        out = out / total[:, None]
        log_total = tl.where(nothing, float("inf"), top + tl.log2(total))
        tl.store(LOG_TOTAL + rows, log_total, mask=rows < n)
    _store(OUT, out, rows, n, dv, DV)


@triton.jit
def _backward_queries(
    Q, K, V, GRAD, LOG_TOTAL, MEAN, DQ, n, n_keys, group, scale, bias, offset, back_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    Q += head * n * D
    DQ += head * n * D
    GRAD += head * n * DV
    K += head // group * n_keys * D
    V += head // group * n_keys * DV
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    q = _load(Q, rows, n, d, D)
    g = _load(GRAD, rows, n, dv, DV)
    log_total = tl.load(LOG_TOTAL + head * n + rows, mask=rows < n, other=float("inf"))
    mean = tl.load(MEAN + head * n + rows, mask=rows < n, other=0.0)
    dq = tl.zeros([ROWS, BLOCK_D], tl.float32)
    end = n_keys
    if CAUSAL:
        end = tl.minimum(n_keys, (tl.program_id(0) + 1) * ROWS + offset)
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load(K, keys, n_keys, d, D)
        v = _load(V, keys, n_keys, dv, DV)
        w = _weights(q, k, rows, keys, n_keys, scale, bias, offset, log_total, CAUSAL, SIGMOID, PRECISION)
        back = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        ds = w * (1.0 - w) * back if SIGMOID else w * (back - mean[:, None])
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    _store(DQ, dq * back_scale, rows, n, d, D)


@triton.jit
def _backward_keys(
    Q, K, V, GRAD, LOG_TOTAL, MEAN, DK, DVALUE, n, n_keys, group, scale, bias, offset, back_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    CAUSAL: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1).to(tl.int64)
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    k = _load(K + kv_head * n_keys * D, keys, n_keys, d, D)
    v = _load(V + kv_head * n_keys * DV, keys, n_keys, dv, DV)
    dk = tl.zeros([KEYS, BLOCK_D], tl.float32)
    dvalue = tl.zeros([KEYS, BLOCK_DV], tl.float32)
    begin = 0
    if CAUSAL:
        # The first block of rows that sees the first of these keys.
        begin = tl.maximum(0, tl.program_id(0) * KEYS - offset) // ROWS * ROWS
    for member in range(group):
        head = kv_head * group + member
        for start in range(begin, n, ROWS):
            rows = start + tl.arange(0, ROWS)
            q = _load(Q + head * n * D, rows, n, d, D)
            g = _load(GRAD + head * n * DV, rows, n, dv, DV)
            log_total = tl.load(LOG_TOTAL + head * n + rows, mask=rows < n, other=float("inf"))
            mean = tl.load(MEAN + head * n + rows, mask=rows < n, other=0.0)
            w = _weights(q, k, rows, keys, n_keys, scale, bias, offset, log_total, CAUSAL, SIGMOID, PRECISION)
            dvalue += tl.dot(tl.trans(w.to(g.dtype)), g, input_precision=PRECISION)
            back = tl.dot(g, tl.trans(v), input_precision=PRECISION)
            ds = w * (1.0 - w) * back if SIGMOID else w * (back - mean[:, None])
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
    _store(DK + kv_head * n_keys * D, dk * back_scale, keys, n_keys, d, D)
    _store(DVALUE + kv_head * n_keys * DV, dvalue, keys, n_keys, dv, DV)


def _sizes(dim: int, dtype: torch.dtype, backward: bool) -> dict[str, int]:
    """Block sizes that fit 100 KiB of shared memory."""
    if dtype == torch.float32:
        rows, keys = (32, 32) if dim > 64 else (64, 32)
    elif backward:
        rows, keys = (64, 64) if dim <= 128 else (32, 32)
    else:
        rows, keys = (128, 64) if dim <= 128 else (64, 32)
    return {"ROWS": rows, "KEYS": keys, "num_warps": 8 if dim > 64 and rows > 64 else 4, "num_stages": 2}


def _settings(q: Tensor, v: Tensor, causal: int | None, weight: Weight) -> dict[str, object]:
    return {
        "D": q.shape[2],
        "DV": v.shape[2],
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[2])),
        "BLOCK_DV": max(16, triton.next_power_of_2(v.shape[2])),
        "CAUSAL": causal is not None,
        "SIGMOID": isinstance(weight, Sigmoid),
        # Not the GPU's short float32, whose error is 1e-3.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, causal, scale, weight):
        q, k, v = (x.contiguous() for x in (query, key, value))
        heads, n, _ = q.shape
        out = q.new_empty(heads, n, v.shape[2])
        log_total = q.new_empty(heads, n, dtype=torch.float32)
        settings = _settings(q, v, causal, weight)
        sizes = _sizes(max(q.shape[2], v.shape[2]), q.dtype, backward=False)
        bias = weight.bias * _LOG2E if isinstance(weight, Sigmoid) else 0.0
        numbers = n, k.shape[1], heads // len(k), scale * _LOG2E, bias, causal or 0
        _forward[(triton.cdiv(n, sizes["ROWS"]), heads)](
            q, k, v, out, log_total, *numbers, **settings, **sizes
        )
        ctx.save_for_backward(q, k, v, out, log_total)
        ctx.settings = numbers, settings, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        no_second_derivatives("attention")
        q, k, v, out, log_total = ctx.saved_tensors
        numbers, settings, scale = ctx.settings
        grad = grad.contiguous()
        mean = (grad.float() * out.float()).sum(-1)
        sizes = _sizes(max(q.shape[2], v.shape[2]), q.dtype, backward=True)
        dq, dk, dv = (
            torch.empty_like(x) if want else None
            for x, want in zip((q, k, v), ctx.needs_input_grad, strict=False)
        )
        arguments = q, k, v, grad, log_total, mean
        if dq is not None:
            grid = triton.cdiv(q.shape[1], sizes["ROWS"]), len(q)
            _backward_queries[grid](*arguments, dq, *numbers, scale, **settings, **sizes)
        if dk is not None or dv is not None:
            dk, dv = torch.empty_like(k), torch.empty_like(v)
            grid = triton.cdiv(k.shape[1], sizes["KEYS"]), len(k)
            _backward_keys[grid](*arguments, dk, dv, *numbers, scale, **settings, **sizes)
        return dq, dk, dv, None, None, None


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
    assert mask is None
    assert not isinstance(scale, Tensor)
    return _Attention.apply(query, key, value, causal, scale, weight)
