"""The slot: `Part(embed_dim, num_heads, ...)`, called as `nn.MultiheadAttention(batch_first=True)` is.

A part is a function with the arguments of torch's `scaled_dot_product_attention` where the maths is one, and
a subclass of `MultiheadAttention` whose `attend` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import attention, check_numbers, rotary
from logitkit.ops.attention import Weight

__all__ = [
    "Cache",
    "MultiheadAttention",
    "identity",
    "key_mask",
    "repeat_heads",
    "visible_keys",
    "weighted",
    "with_dropout",
]


class Cache(NamedTuple):
    """Keys and values (batch, kv_heads, tokens, head_dim) of the tokens so far."""

    key: Tensor
    value: Tensor


class MultiheadAttention(nn.Module):
    """Projections, heads, masks and a cache around `attend`, which a subclass defines.

    takes: what the part can honour; anything else raises ValueError. "mask": `attn_mask`; "padding":
        `key_padding_mask`; "causal": `is_causal`; "cross": keys of other tokens than the queries; "step":
        decoding token by token; "weights": `need_weights`.

    rope turns queries and keys by their positions; qk_norm sends each head's through a LayerNorm first;
    num_kv_heads below num_heads lets several heads of queries share one of keys and values.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"mask", "padding", "causal", "cross", "step", "weights"})

    # What nn.TransformerEncoderLayer asks of its attention; without in_proj_bias it keeps off its fused path.
    batch_first = True
    in_proj_bias = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        num_kv_heads: int | None = None,
        rope: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        kv = num_heads if num_kv_heads is None else num_kv_heads
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a positive multiple of num_heads, got {embed_dim} and {num_heads}."
            )
        if kv < 1 or num_heads % kv:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {kv}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, kv
        self.head_dim = embed_dim // num_heads
        if rope and self.head_dim % 2:
            raise ValueError(f"rope needs an even number of features per head, got {self.head_dim}.")
        self.dropout, self.rope = dropout, rope
        self.in_proj = nn.Linear(embed_dim, (num_heads + 2 * kv) * self.head_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else None
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Float[Tensor, "batch heads queries out"]:
        """What the weights make of the values. query (batch, heads, queries, head_dim); key and value with
        `num_kv_heads` heads, value of any width; mask as torch's function takes it, with the padding in it;
        causal: query i sees the keys up to i + causal."""
        raise NotImplementedError

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"] | None = None,
        value: Float[Tensor, "batch keys dim"] | None = None,
        key_padding_mask: Bool[Tensor, "batch keys"] | None = None,
        need_weights: bool = False,
        attn_mask: Bool[Tensor, "*any queries keys"] | Float[Tensor, "*any queries keys"] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "batch queries dim"], Tensor | None]:
        """The mixed values, and the weights (batch, queries, keys) if asked for, else None.

        key, value: `query` where left out. Masks are those of nn.MultiheadAttention: True hides a key,
        numbers are added to the scores; attn_mask is (queries, keys) or (batch * heads, queries, keys).
        `is_causal` needs no mask beside it. The weights, which need the whole matrix, are returned only on
        demand, without dropout, per head with `average_attn_weights=False`.
        """
        key = query if key is None else key
        value = key if value is None else value
        self._check(query, key, value, need_weights, attn_mask, key_padding_mask, is_causal)
        mask = self._mask(query, key, attn_mask, key_padding_mask)
        q, k, v = self.project(query, key, value)
        causal = 0 if is_causal else None
        out = self.finish(self._mix(q, k, v, mask, causal), query, v, mask)
        if not need_weights:
            return out, None
        weights = self.attend(q, k, identity(k), mask, causal)
        return out, weights.mean(1) if average_attn_weights else weights

    def step(
        self, x: Float[Tensor, "batch tokens dim"], state: Any = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], Any]:
        """The output at the next tokens `x`, and the state to call with after them; None begins.

        One call per token, or per few tokens, gives what `forward(x, is_causal=True)` gives for all.
        """
        self._check_step(x)
        start = 0 if state is None else state.key.shape[-2]
        q, k, v = self.project(x, x, x, start)
        if state is not None:
            k, v = torch.cat([state.key, k], -2), torch.cat([state.value, v], -2)
        mixed = self.attend(q, k, v, None, start)
        return self.merge(mixed), Cache(k, v)

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heads of queries, keys and values, (batch, heads, tokens, head_dim); the first token's position is
        `start`."""
        q, k, v = self.split(query, key, value)
        return *self.place(q, k, start), v

    def split(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projections as heads, before they are normalised and turned."""
        kv = self.num_kv_heads * self.head_dim
        parts = self.projections((query, key, value), [self.embed_dim, kv, kv])
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in parts)
        return q, k, v

    def projections(self, inputs: tuple[Tensor, Tensor, Tensor], sizes: list[int]) -> Sequence[Tensor]:
        """What `in_proj` makes of queries, keys and values: the first of `sizes` features of its output for
        the queries, and so on."""
        if all(x is inputs[0] for x in inputs):
            return self.in_proj(inputs[0]).split(sizes, -1)
        if not isinstance(self.in_proj, nn.Linear):
            return [self.in_proj(x).split(sizes, -1)[i] for i, x in enumerate(inputs)]
        weights = self.in_proj.weight.split(sizes)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.split(sizes)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]

    def place(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Heads of queries and keys normalised, and turned by their positions, where the part asks for it."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            q, k = (rotary(x, torch.arange(start, start + x.shape[-2], device=x.device)) for x in (q, k))
        return q, k

    def merge(self, mixed: Float[Tensor, "batch heads tokens out"]) -> Float[Tensor, "batch tokens dim"]:
        """Heads side by side, through the output projection."""
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def finish(
        self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "batch queries dim"]:
        """The output. A part that makes it of more than the mixture, such as the tokens or their neighbours,
        says so here; it does not take "step"."""
        return self.merge(mixed)

    @torch.no_grad()
    def load_torch(self, other: nn.MultiheadAttention) -> MultiheadAttention:
        """Take the projections of torch's module, of the same dim and heads; returns self."""
        mine = (self.embed_dim, self.num_heads, self.num_kv_heads, self.in_proj.bias is not None)
        theirs = (other.embed_dim, other.num_heads, other.num_heads, other.in_proj_bias is not None)
        if mine != theirs or other.in_proj_weight is None or other.bias_k is not None:
            raise ValueError(
                "expected an nn.MultiheadAttention of the same embed_dim, heads and bias, without kdim,"
                f" vdim or bias_k: this has {mine}, that {theirs} (dim, heads, key-value heads, bias)."
            )
        self.in_proj.weight.copy_(other.in_proj_weight)
        self.out_proj.weight.copy_(other.out_proj.weight)
        if self.in_proj.bias is not None:
            self.in_proj.bias.copy_(other.in_proj_bias)
            self.out_proj.bias.copy_(other.out_proj.bias)
        return self

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int | None) -> Tensor:
        rate = self.dropout if self.training else 0.0
        return with_dropout(lambda value: self.attend(q, k, value, mask, causal), k, v, rate)

    def _mask(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """nn.MultiheadAttention's masks as one of `scaled_dot_product_attention`'s, (batch or 1, heads or 1,
        queries or 1, keys)."""
        batch, queries, keys = len(query), query.shape[1], key.shape[1]
        found = []
        if attn_mask is not None:
            shapes = {
                (queries, keys): (1, 1),
                (batch * self.num_heads, queries, keys): (batch, self.num_heads),
            }
            if tuple(attn_mask.shape) not in shapes:
                raise ValueError(
                    f"attn_mask must be {' or '.join(map(str, shapes))}, got {tuple(attn_mask.shape)}."
                )
            found.append(attn_mask.view(*shapes[tuple(attn_mask.shape)], queries, keys))
        if padding is not None:
            if padding.shape != (batch, keys):
                raise ValueError(f"key_padding_mask must be {(batch, keys)}, got {tuple(padding.shape)}.")
            found.append(padding[:, None, None])
        found = [~m if m.dtype == torch.bool else m for m in found]
        if len(found) < 2:
            return found[0] if found else None
        if all(m.dtype == torch.bool for m in found):
            return found[0] & found[1]
        first, second = (
            torch.zeros_like(m, dtype=query.dtype).masked_fill(~m, -torch.inf) if m.dtype == torch.bool else m
            for m in found
        )
        return first + second

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool,
        attn_mask: Tensor | None,
        padding: Tensor | None,
        is_causal: bool,
    ) -> None:
        for x, what in ((query, "query"), (key, "key"), (value, "value")):
            if x.ndim != 3 or x.shape[-1] != self.embed_dim or 0 in x.shape:
                raise ValueError(
                    f"{what} must be (batch, tokens, {self.embed_dim}) and not empty, got {tuple(x.shape)}."
                )
            if not x.is_floating_point():
                raise ValueError(f"{what} must be floating point, got {x.dtype}.")
            check_numbers(x, what)
        if key.shape != value.shape or len(key) != len(query):
            raise ValueError(
                f"key and value must have the same tokens, and query their batch, got {tuple(query.shape)}, "
                f"{tuple(key.shape)} and {tuple(value.shape)}."
            )
        asked = {
            "mask": attn_mask is not None, "padding": padding is not None, "causal": is_causal,
            "cross": key is not query or value is not query, "weights": need_weights,
        }  # fmt: skip
        self._refuse({name for name, is_asked in asked.items() if is_asked})

    def _check_step(self, x: Tensor) -> None:
        self._refuse({"step"})
        self._check(x, x, x, False, None, None, False)

    def _refuse(self, asked: set[str]) -> None:
        words = {
            "mask": "attn_mask", "padding": "key_padding_mask", "causal": "is_causal=True",
            "cross": "keys other than its queries", "weights": "need_weights=True", "step": "step",
        }  # fmt: skip
        missing = sorted(words[name] for name in asked - self.takes)
        if missing:
            able = ", ".join(sorted(words[name] for name in self.takes)) or "none of that"
            raise ValueError(f"{type(self).__name__} cannot do {' and '.join(missing)}; it takes {able}.")


def weighted(
    weight: str | Weight,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    causal_offset: int,
) -> Tensor:
    """`ops.attention` with dropout of the weights."""

    def mix(value: Tensor) -> Tensor:
        return attention(
            query, key, value, weight=weight, attn_mask=attn_mask, is_causal=is_causal,
            causal_offset=causal_offset, scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip

    return with_dropout(mix, key, value, dropout_p)


def with_dropout(mix: Callable[[Tensor], Tensor], key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """mix(value), or with `dropout_p` what mix's weights make of the values when some are dropped.

    The weights are mix(identity), so that dropout needs the whole matrix.
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}.")
    if dropout_p == 0.0:
        return mix(value)
    weights = mix(identity(key))
    return F.dropout(weights, dropout_p) @ repeat_heads(value, weights.shape[-3])


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Key-value heads repeated for the query heads that they serve."""
    return x if x.shape[-3] == heads else x.repeat_interleave(heads // x.shape[-3], -3)


def key_mask(mask: Tensor | None, what: str) -> Bool[Tensor, "*any keys 1"] | None:
    """A mask that hides keys from all queries alike, as a column to multiply keys by.

    Raises ValueError for a mask that differs between queries, which `what` cannot honour.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape[-2] != 1:
        raise ValueError(
            f"{what} takes a boolean mask of keys, (..., 1, keys), the same for every query; got "
            f"{mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask.transpose(-1, -2)


def visible_keys(mask: Tensor | None, causal: int | None, query: Tensor, key: Tensor) -> Tensor:
    """How many keys each query sees, (..., queries), of as many dimensions as the mask has."""
    queries, keys = query.shape[-2], key.shape[-2]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    if causal is not None:
        seen = seen.tril(causal)
    if mask is not None:
        seen = seen & (mask if mask.dtype == torch.bool else mask != -torch.inf)
    return seen.sum(-1)


def identity(key: Tensor) -> Tensor:
    """Values that turn a mixture into the weights it was made with."""
    n = key.shape[-2]
    return torch.eye(n, dtype=key.dtype, device=key.device).expand(*key.shape[:-1], n)
