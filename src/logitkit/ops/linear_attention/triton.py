"""Chunks of tokens on a GPU: a scan for the states between chunks, then all chunks at once; recomputed in
the backward.

Features and values come in blocks, so that no dim is too large for the shared memory. Compiled for Ampere and
Hopper, blocks of these sizes stay within the registers, twice their size would not. They were not timed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives

# Tokens in a chunk, most features or values in a block, and chunks that one program sums where nothing is
# needed of the sums between them.
CHUNK, BLOCK, PART = 64, 32, 16


@triton.jit
def _load(x, rows, count, columns, width: tl.constexpr):
    """Rows of a contiguous (count, width) matrix in float32, zeros beyond it."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    place = x + rows[:, None].to(tl.int64) * width + columns[None, :]
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _features(x, rows, count, columns, width: tl.constexpr, ELU: tl.constexpr):
    """phi of rows of a matrix, zeros in columns beyond it. Rows beyond it hold any finite numbers."""
    x = _load(x, rows, count, columns, width)
    if ELU:
        low = tl.exp(tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))
        x = tl.where(columns[None, :] < width, tl.where(x > 0.0, x + 1.0, low), 0.0)
    return x


@triton.jit
def _store(x, block, rows, count, columns, width: tl.constexpr):
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    place = x + rows[:, None].to(tl.int64) * width + columns[None, :]
    tl.store(place, block.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _scan(
    K, V, SCALE, SHIFT, START, START_Z, STATES, STATES_Z, END, END_Z, n, part,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    ELU: tl.constexpr, CAUSAL: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """START + sum phi(k) scale v^T and START_Z + sum phi(k) shift, over `part` chunks from the first on (or,
    with REVERSE, from the last back). The sums before each chunk are stored if CAUSAL."""
    chunks = tl.cdiv(n, ROWS)
    parts = tl.cdiv(chunks, part)
    head = (tl.program_id(0) // parts).to(tl.int64)
    begin = tl.program_id(0) % parts * part
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    dv = tl.program_id(2) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    # The start counts once.
    count = tl.where(begin == 0, D, 0)
    state = _load(START + head * D * DV, d, count, dv, DV)
    z = tl.load(START_Z + head * D + d, mask=d < count, other=0.0)
    for step in range(begin, tl.minimum(begin + part, chunks)):
        chunk = chunks - 1 - step if REVERSE else step
        if CAUSAL:
            place = head * chunks + chunk
            _store(STATES + place * D * DV, state, d, D, dv, DV)
            if tl.program_id(2) == 0:
                tl.store(STATES_Z + place * D + d, z, mask=d < D)
        rows = chunk * ROWS + tl.arange(0, ROWS)
        scale = tl.load(SCALE + head * n + rows, mask=rows < n, other=0.0)
        shift = tl.load(SHIFT + head * n + rows, mask=rows < n, other=0.0)
        k = _features(K + head * n * D, rows, n, d, D, ELU)
        v = _load(V + head * n * DV, rows, n, dv, DV) * scale[:, None]
        state += tl.dot(tl.trans(k), v, input_precision=PRECISION)
        z += tl.sum(k * shift[:, None], 0)
    place = tl.program_id(0).to(tl.int64)
    _store(END + place * D * DV, state, d, D, dv, DV)
    if tl.program_id(2) == 0:
        tl.store(END_Z + place * D + d, z, mask=d < D)


@triton.jit
def _forward(
    Q, K, V, STATES, STATES_Z, OUT, SCALE, n, eps,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    ELU: tl.constexpr, CAUSAL: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale (q S + tril(q k^T) v) of a chunk of queries, and scale: 1 over the denominators, or 1."""
    chunks = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    rows = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    # The state before this chunk, or that after all.
    place = tl.program_id(0).to(tl.int64) if CAUSAL else head
    dv = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    out = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    weights = tl.zeros([ROWS, ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = _features(Q + head * n * D, rows, n, d, D, ELU)
        state = _load(STATES + place * D * DV, d, D, dv, DV)
        out += tl.dot(q, state, input_precision=PRECISION)
        if NORMALIZE:
            z = tl.load(STATES_Z + place * D + d, mask=d < D, other=0.0)
            total += tl.sum(q * z[None, :], 1)
        if CAUSAL:
            k = _features(K + head * n * D, rows, n, d, D, ELU)
            weights += tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAUSAL:
        weights = tl.where(rows[:, None] >= rows[None, :], weights, 0.0)
        v = _load(V + head * n * DV, rows, n, dv, DV)
        out += tl.dot(weights, v, input_precision=PRECISION)
    scale = tl.full([ROWS], 1.0, tl.float32)
    if NORMALIZE:
        if CAUSAL:
            total += tl.sum(weights, 1)
        scale = 1.0 / (total + eps)
    _store(OUT + head * n * DV, out * scale[:, None], rows, n, dv, DV)
    if tl.program_id(1) == 0:
        tl.store(SCALE + head * n + rows, scale, mask=rows < n)


@triton.jit
def _backward_queries(
    Q, K, V, GRAD, SCALE, SHIFT, STATES, STATES_Z, DQ, n,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    ELU: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """g S^T + shift z^T + tril(g v^T + shift) k, times phi'; g = scale GRAD."""
    chunks = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    rows = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(0).to(tl.int64) if CAUSAL else head
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    scale = tl.load(SCALE + head * n + rows, mask=rows < n, other=0.0)
    shift = tl.load(SHIFT + head * n + rows, mask=rows < n, other=0.0)
    z = tl.load(STATES_Z + place * D + d, mask=d < D, other=0.0)
    dq = shift[:, None] * z[None, :]
    back = tl.zeros([ROWS, ROWS], tl.float32) + shift[:, None]
    for start in range(0, DV, BLOCK_DV):
        dv = start + tl.arange(0, BLOCK_DV)
        g = _load(GRAD + head * n * DV, rows, n, dv, DV) * scale[:, None]
        state = _load(STATES + place * D * DV, d, D, dv, DV)
        dq += tl.dot(g, tl.trans(state), input_precision=PRECISION)
        if CAUSAL:
            v = _load(V + head * n * DV, rows, n, dv, DV)
            back += tl.dot(g, tl.trans(v), input_precision=PRECISION)
    if CAUSAL:
        back = tl.where(rows[:, None] >= rows[None, :], back, 0.0)
        k = _features(K + head * n * D, rows, n, d, D, ELU)
        dq += tl.dot(back, k, input_precision=PRECISION)
    if ELU:
        dq *= tl.minimum(_features(Q + head * n * D, rows, n, d, D, ELU), 1.0)
    _store(DQ + head * n * D, dq, rows, n, d, D)


@triton.jit
def _backward_keys(
    Q, K, V, GRAD, SCALE, SHIFT, STATES, STATES_Z, DK, n,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    ELU: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """v dS^T + dz^T + tril(g v^T + shift)^T q, times phi'; the states are the gradients of S and z."""
    chunks = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    rows = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(0).to(tl.int64) if CAUSAL else head
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    z = tl.load(STATES_Z + place * D + d, mask=d < D, other=0.0)
    dk = tl.zeros([ROWS, BLOCK_D], tl.float32) + z[None, :]
    back = tl.zeros([ROWS, ROWS], tl.float32)
    for start in range(0, DV, BLOCK_DV):
        dv = start + tl.arange(0, BLOCK_DV)
        v = _load(V + head * n * DV, rows, n, dv, DV)
        state = _load(STATES + place * D * DV, d, D, dv, DV)
        dk += tl.dot(v, tl.trans(state), input_precision=PRECISION)
        if CAUSAL:
            scale = tl.load(SCALE + head * n + rows, mask=rows < n, other=0.0)
            g = _load(GRAD + head * n * DV, rows, n, dv, DV) * scale[:, None]
            back += tl.dot(g, tl.trans(v), input_precision=PRECISION)
    if CAUSAL:
        shift = tl.load(SHIFT + head * n + rows, mask=rows < n, other=0.0)
        back = tl.where(rows[:, None] >= rows[None, :], back + shift[:, None], 0.0)
        q = _features(Q + head * n * D, rows, n, d, D, ELU)
        dk += tl.dot(tl.trans(back), q, input_precision=PRECISION)
    if ELU:
        dk *= tl.minimum(_features(K + head * n * D, rows, n, d, D, ELU), 1.0)
    _store(DK + head * n * D, dk, rows, n, d, D)


@triton.jit
def _backward_values(
    Q, K, GRAD, SCALE, STATES, DVALUE, n,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr,
    ELU: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """k dS + tril(q k^T)^T g; the states are the gradients of S."""
    chunks = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    rows = tl.program_id(0) % chunks * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(0).to(tl.int64) if CAUSAL else head
    dv = tl.program_id(1) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    dvalue = tl.zeros([ROWS, BLOCK_DV], tl.float32)
    weights = tl.zeros([ROWS, ROWS], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        k = _features(K + head * n * D, rows, n, d, D, ELU)
        state = _load(STATES + place * D * DV, d, D, dv, DV)
        dvalue += tl.dot(k, state, input_precision=PRECISION)
        if CAUSAL:
            q = _features(Q + head * n * D, rows, n, d, D, ELU)
            weights += tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAUSAL:
        scale = tl.load(SCALE + head * n + rows, mask=rows < n, other=0.0)
        g = _load(GRAD + head * n * DV, rows, n, dv, DV) * scale[:, None]
        weights = tl.where(rows[:, None] >= rows[None, :], weights, 0.0)
        dvalue += tl.dot(tl.trans(weights), g, input_precision=PRECISION)
    _store(DVALUE + head * n * DV, dvalue, rows, n, dv, DV)


def _settings(k: Tensor, v: Tensor, causal: bool, elu: bool) -> dict[str, Any]:
    return {
        "D": k.shape[2],
        "DV": v.shape[2],
        "BLOCK_D": min(BLOCK, max(16, triton.next_power_of_2(k.shape[2]))),
        "BLOCK_DV": min(BLOCK, max(16, triton.next_power_of_2(v.shape[2]))),
        "ROWS": CHUNK,
        "ELU": elu,
        "CAUSAL": causal,
        # The GPU's short float32 alone has an error of 1e-3; three products of it stay far below half
        # precision, and keep the range that states need.
        "PRECISION": "ieee" if v.dtype == torch.float32 else "tf32x3",
        "num_warps": 8,
        "num_stages": 2,
    }


def _sums(
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    shift: Tensor,
    start: tuple[Tensor, Tensor],
    settings: dict[str, Any],
    reverse: bool = False,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The states that the chunks see, and the last: start + sum phi(k) scale v^T and sum phi(k) shift."""
    heads, n, dim = k.shape
    causal, chunks = settings["CAUSAL"], triton.cdiv(n, CHUNK)
    part = chunks if causal else PART
    parts = triton.cdiv(chunks, part)
    start = start[0].contiguous(), start[1].contiguous()
    end = [x.new_empty(heads, parts, *x.shape[1:]) for x in start]
    # Without causality none is stored, and any pointer does.
    between = [x.new_empty(heads, chunks, *x.shape[1:]) for x in start] if causal else end
    grid = heads * parts, triton.cdiv(dim, settings["BLOCK_D"]), triton.cdiv(v.shape[2], settings["BLOCK_DV"])
    _scan[grid](k, v, scale, shift, *start, *between, *end, n, part, REVERSE=reverse, **settings)
    last = end[0].sum(1), end[1].sum(1)
    return (between[0], between[1]) if causal else last, last


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, matrix, vector, causal, normalize, eps, elu):
        q, k, v = (x.contiguous() for x in (query, key, value))
        heads, n, _ = q.shape
        settings = _settings(k, v, causal, elu)
        out = q.new_empty(heads, n, v.shape[2])
        scale = q.new_empty(heads, n, dtype=torch.float32)
        ones = q.new_ones(k.shape[:2], dtype=torch.float32)
        with torch.cuda.device_of(q):
            states, last = _sums(k, v, ones, ones, (matrix, vector), settings)
            grid = heads * triton.cdiv(n, CHUNK), triton.cdiv(v.shape[2], settings["BLOCK_DV"])
            _forward[grid](q, k, v, *states, out, scale, n, eps, NORMALIZE=normalize, **settings)
        # The states between chunks are made again.
        ctx.save_for_backward(q, k, v, out, scale, *((matrix, vector) if causal else last))
        ctx.settings = settings, normalize
        return out, *last

    @staticmethod
    def backward(ctx, grad, grad_matrix, grad_vector):
        no_second_derivatives("linear_attention")
        q, k, v, out, scale, *state = ctx.saved_tensors
        settings, normalize = ctx.settings
        heads, n, dim = q.shape
        grad = grad.contiguous()
        shift = torch.zeros_like(scale)
        if normalize:
            shift = -scale * (grad.float() * out.float()).sum(-1)
        dq, dk, dv = (
            torch.empty_like(x) if want else None
            for x, want in zip((q, k, v), ctx.needs_input_grad, strict=False)
        )
        start = None, None
        chunks, keys = heads * triton.cdiv(n, CHUNK), heads * triton.cdiv(k.shape[1], CHUNK)
        blocks = triton.cdiv(dim, settings["BLOCK_D"])
        with torch.cuda.device_of(q):
            if dq is not None:
                if settings["CAUSAL"]:
                    ones = torch.ones_like(scale)
                    state, _ = _sums(k, v, ones, ones, state, settings)
                _backward_queries[chunks, blocks](q, k, v, grad, scale, shift, *state, dq, n, **settings)
            if any(ctx.needs_input_grad[1:5]):
                above = grad_matrix, grad_vector
                state, start = _sums(q, grad, scale, shift, above, settings, reverse=True)
            if dk is not None:
                _backward_keys[keys, blocks](q, k, v, grad, scale, shift, *state, dk, k.shape[1], **settings)
            if dv is not None:
                grid = keys, triton.cdiv(v.shape[2], settings["BLOCK_DV"])
                _backward_values[grid](q, k, grad, scale, state[0], dv, k.shape[1], **settings)
        return dq, dk, dv, *start, None, None, None, None


def linear_attention(
    query: Float[Tensor, "heads queries dim"],
    key: Float[Tensor, "heads keys dim"],
    value: Float[Tensor, "heads keys out"],
    matrix: Float[Tensor, "heads dim out"],
    vector: Float[Tensor, "heads dim"],
    causal: bool,
    normalize: bool,
    eps: float,
    elu: bool,
) -> tuple[Float[Tensor, "heads queries out"], Float[Tensor, "heads dim out"], Float[Tensor, "heads dim"]]:
    """The output and the state after the last key; matrix and vector are the state before the first."""
    return _LinearAttention.apply(query, key, value, matrix, vector, causal, normalize, eps, elu)
