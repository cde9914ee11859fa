"""Many chunks per product; features and normalisation in one pass; recomputed in the backward."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives
from logitkit.ops.gemm import fast_products
from logitkit.ops.kernels import exp, f32, inner, kernel

# Tokens in a chunk at most, within which the matrix of weights is made.
CHUNK = 128
# Numbers in the weights, or the features, that are held at a time: 2 MiB of float32.
BLOCK = 2**19
# Numbers in one turn of a loop over features.
PIECE = 2048


@inner()
def _features(x, y, elu):
    if elu:
        for j in range(x.size):
            e = exp(x[j])
            y[j] = x[j] + f32(1) if x[j] > f32(0) else e
    else:
        for j in range(x.size):
            y[j] = x[j]


@kernel()
def _pack(x, stride, size, y, elu):
    """phi of the first `size` numbers of each head into its row of y, the rest of the row zeros."""
    heads, padded = y.shape
    pieces = (padded + PIECE - 1) // PIECE
    for p in numba.prange(heads * pieces):
        h, a = p // pieces, p % pieces * PIECE
        b = min(a + PIECE, padded)
        end = max(a, min(b, size))
        _features(x[h * stride + a : h * stride + end], y[h, a:end], elu)
        y[h, end:b] = f32(0)


@kernel()
def _pack_queries(x, stride, y, elu, vector, below, eps):
    """phi(x) / (phi(x) . vector + eps) into y, the denominators into below."""
    heads, rows, dim = y.shape
    for r in numba.prange(heads * rows):
        h, i = r // rows, r % rows
        out = y[h, i]
        _features(x[h * stride + i * dim : h * stride + (i + 1) * dim], out, elu)
        z = vector[h]
        total = f32(0)
        for j in range(z.size):
            total += out[j] * z[j]
        total += eps
        below[h, i] = total
        inverse = f32(1) / total
        for j in range(z.size):
            out[j] *= inverse


@kernel()
def _triangle(a):
    """Zeros above the diagonal of each matrix."""
    n = a.shape[1]
    for r in numba.prange(a.shape[0] * n):
        a[r // n, r % n, r % n + 1 :] = f32(0)


@kernel()
def _triangle_normalized(a, q, vectors, below, eps):
    """Zeros above the diagonal, and rows of weights and of queries divided by their denominators."""
    n = a.shape[1]
    for r in numba.prange(a.shape[0] * n):
        c, i = r // n, r % n
        row = a[c, i, : i + 1]
        total = f32(0)
        for j in range(row.size):
            total += row[j]
        x = q[c, i]
        z = vectors[c]
        for j in range(x.size):
            total += x[j] * z[j]
        total += eps
        below[c, i] = total
        inverse = f32(1) / total
        for j in range(row.size):
            row[j] *= inverse
        for j in range(x.size):
            x[j] *= inverse
        a[c, i, i + 1 :] = f32(0)


@kernel()
def _triangle_shifted(a, shift):
    """Row i of each matrix plus shift[i]; zeros above the diagonal."""
    n = a.shape[1]
    for r in numba.prange(a.shape[0] * n):
        c, i = r // n, r % n
        row = a[c, i, : i + 1]
        s = shift[c, i]
        for j in range(row.size):
            row[j] += s
        a[c, i, i + 1 :] = f32(0)


@kernel()
def _through_elu(g, y):
    """g times the derivative of elu + 1 where its value is y."""
    for r in numba.prange(g.shape[0]):
        out = g[r]
        value = y[r]
        for j in range(out.size):
            out[j] *= value[j] if value[j] < f32(1) else f32(1)


def _span(x: Tensor) -> tuple[np.ndarray, int]:
    """A tensor (heads, rows, dim) as a flat array, and where in it each head's numbers follow the last's: an
    array whose type says that it is dense, or loops over it would not vectorise."""
    if x.stride()[1:] != (x.shape[2], 1):
        x = x.contiguous()
    size = (len(x) - 1) * x.stride(0) + x.shape[1] * x.shape[2]
    return x.as_strided((size,), (1,)).numpy(), x.stride(0)


def _pack_into(y: Tensor, x: Tensor, elu: bool) -> Tensor:
    _pack(*_span(x), x.shape[1] * x.shape[2], y.flatten(1).numpy(), elu)
    return y


class _Buffers(threading.local):
    """Memory by name, which each thread keeps: fresh memory costs more than a stretch's arithmetic."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self.held or self.held[name].numel() < size:
            with torch.inference_mode(False):
                self.held[name] = torch.empty(size)
        return self.held[name][:size].view(shape)


_buffers = _Buffers()


def _heads(x: Tensor, width: int) -> Iterator[slice]:
    """Heads at a time."""
    some = max(1, BLOCK // width)
    return (slice(h, min(h + some, len(x))) for h in range(0, len(x), some))


def _chunk(n: int) -> int:
    """Tokens in a chunk of `n`, such that the last is hardly shorter than the others."""
    return -(-n // -(-n // CHUNK))


def _stretches(n: int, heads: int) -> list[slice]:
    """Tokens at a time: some whole chunks, the last not always."""
    chunk = _chunk(n)
    step = chunk * max(1, BLOCK // (chunk * chunk * heads))
    return [slice(t, min(t + step, n)) for t in range(0, n, step)]


class _Stretch:
    """Some chunks of some heads: (heads * chunks, chunk, dim) features and values, and the states before each
    chunk."""

    def __init__(
        self, chunk: int, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor, vector: Tensor, elu: bool
    ) -> None:
        self.heads, self.tokens, self.dim = q.shape
        self.chunk, self.chunks = chunk, -(-self.tokens // chunk)
        self.q = self.pack("q", q, elu)
        self.k = self.pack("k", k, elu)
        self.v = self.pack("v", v)
        count = self.heads, self.chunks
        local = torch.bmm(
            self.k.transpose(1, 2), self.v, out=_buffers("states", len(self.k), self.dim, v.shape[2])
        )
        self.matrices, self.matrix = _before(local.view(*count, self.dim, -1), matrix)
        self.vectors, self.vector = _before(self.k.sum(1).view(*count, self.dim), vector)

    def pack(self, name: str, x: Tensor, elu: bool = False) -> Tensor:
        y = _buffers(name, self.heads, self.chunks * self.chunk, x.shape[2])
        return _pack_into(y, x, elu).view(-1, self.chunk, x.shape[2])

    def unpack(self, x: Tensor) -> Tensor:
        return x.view(self.heads, self.chunks * self.chunk, *x.shape[2:])[:, : self.tokens]

    def products(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b.transpose(1, 2), out=_buffers(name, len(a), a.shape[1], b.shape[1]))


def _before(local: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """What has been summed before each chunk, and after the last."""
    sums = local.cumsum(1)
    sums += start.unsqueeze(1)
    last = sums[:, -1].clone()
    sums -= local
    return sums.flatten(0, 1), last


def _after(local: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """What comes after each chunk, and from the first on."""
    sums = local.flip(1).cumsum(1).flip(1)
    sums += end.unsqueeze(1)
    first = sums[:, 0].clone()
    sums -= local
    return sums.flatten(0, 1), first


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, matrix, vector, normalize, eps, elu):
        heads, n, dim = query.shape
        chunk = _chunk(n)
        result = query.new_empty(heads, n, value.shape[2])
        below = query.new_empty(heads, n) if normalize else None
        last = torch.empty_like(matrix), torch.empty_like(vector)
        ctx.starts = []
        with fast_products():
            for own in _heads(query, max(chunk * chunk, dim * value.shape[2])):
                state = matrix[own], vector[own]
                for tokens in _stretches(n, own.stop - own.start):
                    ctx.starts.append(state)
                    s = _Stretch(chunk, *(x[own, tokens] for x in (query, key, value)), *state, elu)
                    weights = s.products("weights", s.q, s.k)
                    if normalize:
                        part = _buffers("below", *s.q.shape[:2])
                        _triangle_normalized(
                            weights.numpy(), s.q.numpy(), s.vectors.numpy(), part.numpy(), f32(eps)
                        )
                        below[own, tokens] = s.unpack(part)
                    else:
                        _triangle(weights.numpy())
                    out = torch.bmm(s.q, s.matrices, out=_buffers("out", *s.v.shape))
                    result[own, tokens] = s.unpack(out.baddbmm_(weights, s.v))
                    state = s.matrix, s.vector
                last[0][own], last[1][own] = state
        ctx.save_for_backward(query, key, value, result, below)
        ctx.settings = normalize, elu
        return result, *last

    @staticmethod
    def backward(ctx, grad, grad_matrix, grad_vector):
        no_second_derivatives("linear_attention")
        query, key, value, result, below = ctx.saved_tensors
        normalize, elu = ctx.settings
        dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
        grad_matrix, grad_vector = grad_matrix.clone(), grad_vector.clone()
        starts = iter(ctx.starts)
        _, n, dim = query.shape
        chunk = _chunk(n)
        with fast_products():
            for own in _heads(query, max(chunk * chunk, dim * value.shape[2])):
                dm, dz = grad_matrix[own], grad_vector[own]
                stretches = _stretches(n, own.stop - own.start)
                before = [next(starts) for _ in stretches]
                for tokens, state in zip(reversed(stretches), reversed(before), strict=True):
                    s = _Stretch(chunk, *(x[own, tokens] for x in (query, key, value)), *state, elu)
                    count = s.heads, s.chunks
                    g = grad[own, tokens]
                    if normalize:
                        g = g / below[own, tokens].unsqueeze(2)
                        # The gradient in the denominators.
                        shift = -(g * result[own, tokens]).sum(2, keepdim=True)
                        shift = s.pack("shift", shift)
                    g = s.pack("g", g)
                    weights = s.products("weights", s.q, s.k)
                    _triangle(weights.numpy())
                    back = s.products("back", g, s.v)
                    if normalize:
                        _triangle_shifted(back.numpy(), shift.squeeze(2).numpy())
                    else:
                        _triangle(back.numpy())
                    local = torch.bmm(s.q.transpose(1, 2), g)
                    matrices, dm = _after(local.view(*count, *local.shape[1:]), dm)
                    part = torch.bmm(back, s.k).baddbmm_(g, s.matrices.transpose(1, 2))
                    if normalize:
                        part += shift * s.vectors.unsqueeze(1)
                    if elu:
                        _through_elu(part.flatten(0, 1).numpy(), s.q.flatten(0, 1).numpy())
                    dq[own, tokens] = s.unpack(part)
                    part = torch.bmm(back.transpose(1, 2), s.q).baddbmm_(s.v, matrices.transpose(1, 2))
                    local = (
                        torch.bmm(s.q.transpose(1, 2), shift).squeeze(2)
                        if normalize
                        else s.q.new_zeros(len(s.q), s.dim)
                    )
                    vectors, dz = _after(local.view(*count, s.dim), dz)
                    part += vectors.unsqueeze(1)
                    if elu:
                        _through_elu(part.flatten(0, 1).numpy(), s.k.flatten(0, 1).numpy())
                    dk[own, tokens] = s.unpack(part)
                    part = torch.bmm(weights.transpose(1, 2), g).baddbmm_(s.k, matrices)
                    dv[own, tokens] = s.unpack(part)
                grad_matrix[own], grad_vector[own] = dm, dz
        return dq, dk, dv, grad_matrix, grad_vector, None, None, None


class _Whole(torch.autograd.Function):
    """Every query sees every key: one pass over the keys, one over the queries."""

    @staticmethod
    def forward(ctx, query, key, value, matrix, vector, normalize, eps, elu):
        heads, n, dim = query.shape
        result = query.new_empty(heads, n, value.shape[2])
        below = query.new_empty(heads, n) if normalize else None
        matrix, vector = matrix.clone(), vector.clone()
        with fast_products():
            for own in _heads(query, CHUNK * dim):
                some = own.stop - own.start
                step = max(CHUNK, BLOCK // (some * dim) // 2)
                for t in range(0, key.shape[1], step):
                    k = key[own, t : t + step]
                    phi = _pack_into(_buffers("phi", *k.shape), k, elu)
                    matrix[own].baddbmm_(phi.transpose(1, 2), value[own, t : t + step])
                    vector[own] += phi.sum(1)
                for t in range(0, n, step):
                    q = query[own, t : t + step]
                    phi = _buffers("phi", *q.shape)
                    if normalize:
                        _pack_queries(
                            *_span(q),
                            phi.numpy(),
                            elu,
                            vector[own].numpy(),
                            below[own, t : t + step].numpy(),
                            f32(eps),
                        )
                    else:
                        _pack_into(phi, q, elu)
                    torch.bmm(phi, matrix[own], out=result[own, t : t + step])
        ctx.save_for_backward(query, key, value, matrix, vector, result, below)
        ctx.settings = normalize, elu
        return result, matrix, vector

    @staticmethod
    def backward(ctx, grad, grad_matrix, grad_vector):
        no_second_derivatives("linear_attention")
        query, key, value, matrix, vector, result, below = ctx.saved_tensors
        normalize, elu = ctx.settings
        dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
        dm, dz = grad_matrix.clone(), grad_vector.clone()
        _, n, dim = query.shape
        with fast_products():
            for own in _heads(query, CHUNK * dim):
                some = own.stop - own.start
                step = max(CHUNK, BLOCK // (some * dim) // 2)
                for t in range(0, n, step):
                    tokens = slice(t, t + step)
                    q, g = query[own, tokens], grad[own, tokens]
                    phi = _pack_into(_buffers("phi", *q.shape), q, elu)
                    if normalize:
                        g = g / below[own, tokens].unsqueeze(2)
                        shift = -(g * result[own, tokens]).sum(2, keepdim=True)
                        dz[own] += (phi * shift).sum(1)
                    part = torch.bmm(g, matrix[own].transpose(1, 2))
                    if normalize:
                        part += shift * vector[own].unsqueeze(1)
                    dm[own].baddbmm_(phi.transpose(1, 2), g)
                    if elu:
                        _through_elu(part.flatten(0, 1).numpy(), phi.flatten(0, 1).numpy())
                    dq[own, tokens] = part
                for t in range(0, key.shape[1], step):
                    tokens = slice(t, t + step)
                    k = key[own, tokens]
                    phi = _pack_into(_buffers("phi", *k.shape), k, elu)
                    dv[own, tokens] = torch.bmm(phi, dm[own])
                    part = torch.bmm(value[own, tokens], dm[own].transpose(1, 2))
                    part += dz[own].unsqueeze(1)
                    if elu:
                        _through_elu(part.flatten(0, 1).numpy(), phi.flatten(0, 1).numpy())
                    dk[own, tokens] = part
        return dq, dk, dv, dm, dz, None, None, None


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
    function = _Causal if causal else _Whole
    dtype = query.dtype
    result, matrix, vector = function.apply(
        query.float(), key.float(), value.float(), matrix, vector, normalize, eps, elu
    )
    return result.to(dtype), matrix, vector
