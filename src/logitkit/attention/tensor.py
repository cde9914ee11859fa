"""Tensor attention: a token attends to pairs of tokens, or to more of them at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, key_mask
from logitkit.ops import attention
from logitkit.registry import part

Method = Literal["dense", "chunked", "poly"]
# Scores per head that the dense form makes at most, and that the chunked one makes at a time.
LIMIT, CHUNK = 2**24, 2**20


def khatri_rao(
    xs: Sequence[Float[Tensor, "*batch tokens dim"]],
) -> Float[Tensor, "*batch tuples dim"]:
    """Row (j, l, ...) of the result is the elementwise product of rows j, l, ..."""
    first = xs[0]
    for x in xs[1:]:
        first = (first[..., :, None, :] * x[..., None, :, :]).flatten(-3, -2)
    return first


def required_degree(bound: float, eps: float) -> int:
    """The least even degree g whose Taylor series of exp is within eps for triples of entries within +-bound:
    B^(3(g+1)) e^(B^3) / (g+1)! <= eps. (Scores are means of products of three, so within B^3.)"""
    if not (bound > 0 and eps > 0):
        raise ValueError(f"bound and eps must be positive, got {bound} and {eps}.")
    g, s = 0, bound**3
    while (g + 1) * math.log(s) + s - math.lgamma(g + 2) > math.log(eps):
        g += 2
    return g


def tensor_attention(
    query: Float[Tensor, "*batch queries dim"],
    keys: Sequence[Float[Tensor, "*batch keys dim"]],
    values: Sequence[Float[Tensor, "*batch keys out"]],
    method: Method = "dense",
    degree: int | None = None,
    seen: Bool[Tensor, "*any keys"] | None = None,
    causal: int | None = None,
) -> Float[Tensor, "*batch queries out"]:
    """sum over (j, l) of softmax(sum_c q_ic k1_jc k2_lc / dim) v1_j * v2_l; see `TensorAttention`.

    keys, values: one tensor per place of the tuple, two for pairs. seen hides keys from all queries, in every
    place; with `causal` query i sees the keys up to i + causal.
    method: "dense" makes the whole matrix, and refuses more than 2^24 scores per head; "chunked" some rows of
        the first key at a time; "poly" replaces exp by its Taylor series up to `degree`, an even number, and
        takes time linear in the tokens, times C(dim + degree, degree).
    """
    if len(keys) != len(values) or not keys:
        raise ValueError(f"expected as many keys as values, at least 1, got {len(keys)} and {len(values)}.")
    if method not in ("dense", "chunked", "poly"):
        raise ValueError(f"method must be 'dense', 'chunked' or 'poly', got {method!r}.")
    if (degree is not None) != (method == "poly"):
        raise ValueError(f"degree goes with method='poly' and only with it, got {degree} and {method!r}.")
    if degree is not None and (degree < 2 or degree % 2):
        raise ValueError(f"degree must be even and at least 2, so that weights are positive, got {degree}.")
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, keys, values = query.float(), [k.float() for k in keys], [v.float() for v in values]
    with torch.autocast(query.device.type, enabled=False):
        if degree is not None:
            return _poly(query, keys, values, degree, seen, causal).to(dtype)
        n = keys[0].shape[-2]
        allowed = torch.ones(query.shape[-2], n, dtype=torch.bool, device=query.device)
        allowed = allowed if causal is None else allowed.tril(causal)
        allowed = allowed if seen is None else allowed & seen[..., None, :]
        form = _dense if method == "dense" else _chunked
        return form(query, keys, values, allowed).to(dtype)


def _dense(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], allowed: Tensor) -> Tensor:
    """Ordinary attention over tuples."""
    scores = query.shape[-2] * keys[0].shape[-2] ** len(keys)
    if scores > LIMIT:
        raise ValueError(f"the dense form makes at most {LIMIT} scores per head, got {scores}: use chunked.")
    q, k, v = query, khatri_rao(keys), khatri_rao(values)
    mask = _tuples(allowed, len(keys))
    q, k, v = (x if x.ndim > 2 else x[None] for x in (q, k, v))
    mixed = attention(q, k, v, attn_mask=mask, scale=1 / query.shape[-1])
    return mixed if query.ndim > 2 else mixed[0]


def _tuples(allowed: Tensor, places: int) -> Tensor:
    """Which tuples each query sees: those all of whose keys it sees."""
    found = allowed
    for _ in range(places - 1):
        found = (found[..., :, None] & allowed[..., None, :]).flatten(-2)
    return found


def _chunked(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], allowed: Tensor) -> Tensor:
    """Some of the first keys at a time, with a running maximum."""
    rest_k = khatri_rao(keys[1:] or [torch.ones_like(keys[0][..., :1, :])])
    rest_v = khatri_rao(values[1:] or [torch.ones_like(values[0][..., :1, :])])
    others = _tuples(allowed, len(keys) - 1) if len(keys) > 1 else allowed.new_ones(*allowed.shape[:-1], 1)
    size = max(1, CHUNK // (query.shape[-2] * rest_k.shape[-2]))
    peak = query.new_full((*query.shape[:-1], 1), -torch.inf)
    total, out = torch.zeros_like(peak), query.new_zeros(*query.shape[:-1], values[0].shape[-1])
    pieces = (x.split(size, dim) for x, dim in ((keys[0], -2), (values[0], -2), (allowed, -1)))
    for k1, v1, first in zip(*pieces, strict=True):
        k, v = khatri_rao([k1, rest_k]), khatri_rao([v1, rest_v])
        hidden = ~(first[..., :, None] & others[..., None, :]).flatten(-2)
        scores = (query @ k.mT / query.shape[-1]).masked_fill(hidden, -torch.inf)
        new = torch.maximum(peak, scores.detach().amax(-1, keepdim=True))
        base = new.masked_fill(new == -torch.inf, 0)
        w, shrink = (scores - base).exp(), (peak - base).exp()
        total, out, peak = total * shrink + w.sum(-1, keepdim=True), out * shrink + w @ v, new
    return out / total.masked_fill(total == 0, 1)


class Monomials(NamedTuple):
    """Products of up to g of d coordinates: for each degree above 0 which product of the degree before, and
    which coordinate, each is made of; and 1 / (d^m a_1! ... a_d!) of all, a their exponents, m the degree."""

    steps: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    coefficients: tuple[float, ...]

    def __call__(self, x: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens monomials"]:
        found = [torch.ones_like(x[..., :1])]
        for parents, coordinates in self.steps:
            found.append(found[-1][..., list(parents)] * x[..., list(coordinates)])
        return torch.cat(found, -1)


@functools.cache
def monomials(dim: int, degree: int) -> Monomials:
    """Each product of up to `degree` of `dim` coordinates once: coordinates do not fall along it."""
    level, steps, coefficients = [((0,) * dim, 0)], [], [1.0]
    for m in range(1, degree + 1):
        made = [(p, c) for p, (_, least) in enumerate(level) for c in range(least, dim)]
        steps.append((tuple(p for p, _ in made), tuple(c for _, c in made)))
        level = [((*level[p][0][:c], level[p][0][c] + 1, *level[p][0][c + 1 :]), c) for p, c in made]
        coefficients += [1 / (dim**m * math.prod(map(math.factorial, a))) for a, _ in level]
    return Monomials(tuple(steps), tuple(coefficients))


def _poly(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    degree: int,
    seen: Tensor | None,
    causal: int | None,
) -> Tensor:
    """Monomials of queries times the product of sums over each place."""
    products = monomials(query.shape[-1], degree)
    u = products(query) * query.new_tensor(products.coefficients)
    top: Tensor | None = None
    below: Tensor | None = None
    for key, value in zip(keys, values, strict=True):
        f = products(key)
        f = f if seen is None else f * seen[..., None]
        if causal is None:
            m, z = f.mT @ value, f.sum(-2)[..., None, :]
        else:
            rows = torch.arange(query.shape[-2], device=query.device) + causal
            some = (rows >= 0)[:, None]
            rows = rows.clamp(0, key.shape[-2] - 1)
            m = (f[..., :, None] * value[..., None, :]).cumsum(-3)[..., rows, :, :] * some[..., None]
            z = f.cumsum(-2)[..., rows, :] * some
        top, below = (m, z) if top is None or below is None else (top * m, below * z)
    assert top is not None
    assert below is not None
    mixed = u @ top if causal is None else (u[..., None, :] @ top).squeeze(-2)
    total = (u * below).sum(-1, keepdim=True)
    return mixed / total.masked_fill(total == 0, 1)


@part(
    "tensor",
    "attention",
    number=177,
    title="How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker"
    " Computation",
    paper="arXiv:2310.04064",
    replaces="softmax",
    tasks=("sequence", "classification"),
)
class TensorAttention(MultiheadAttention):
    """Tensor attention: each token attends to pairs of tokens, for what depends on three at once and pairwise
    scores cannot see.

    Equation: out_i = sum_{j,l} a_ijl v1_j * v2_l, a_i = softmax over (j, l) of sum_c q_ic k1_jc k2_lc / d, d
    the size of a head: two projections each of keys and values. `order` 3 is pairs, k is tuples of k - 1.
    With `degree` exp is its Taylor series, whose monomials split into queries and keys, so that time grows
    with the tokens.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and None: the weights are of pairs. Scores take queries times keys^2 numbers, a part at a time
    above 2^24 of a head.

    Defaults: order 3; no degree, exact. A degree suits small heads with bounded entries: it has C(d + degree,
    degree) features; `required_degree` says which.

    Raises: ValueError for sizes that do not fit, an order below 2, an odd degree, dropout, a mask that
    differs between queries, other dtypes than floats, an empty batch or NaN.

    Source: Alman, Song, ICLR 2024, arXiv:2310.04064, the definition of tensor attention and its algorithm for
    bounded entries.

    Not for: long inputs without a degree, as time grows with their cube.
    """

    takes = frozenset({"padding", "causal", "cross", "step"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        order: int = 3,
        degree: int | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if dropout:
            raise ValueError(f"tensor attention does not drop weights, got dropout={dropout}.")
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}.")
        if degree is not None and (degree < 2 or degree % 2):
            raise ValueError(f"degree must be even and at least 2, got {degree}.")
        self.order, self.degree = order, degree
        self.in_proj = nn.Linear(embed_dim, (2 * order - 1) * embed_dim, bias=bias)

    def split(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's; keys and values of a head hold those of every place, one after the other."""
        many = (self.order - 1) * self.embed_dim
        parts = self.projections((query, key, value), [self.embed_dim, many, many])
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        return q, k, v

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        hidden = key_mask(mask, "tensor attention")
        seen = None if hidden is None else hidden.squeeze(-1)
        scores = query.shape[-2] * key.shape[-2] ** (self.order - 1)
        method: Method = "poly" if self.degree is not None else "dense" if scores <= LIMIT else "chunked"
        keys, values = (x.chunk(self.order - 1, -1) for x in (key, value))
        return tensor_attention(query, keys, values, method, self.degree, seen, causal)
