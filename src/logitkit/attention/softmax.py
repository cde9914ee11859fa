"""Softmax attention, the one that the others replace."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.attention.base import MultiheadAttention, weighted
from logitkit.registry import part


def softmax_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any queries keys"] | Float[Tensor, "*any queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: int = 0,
) -> Float[Tensor, "*batch heads queries out"]:
    """softmax(scale Q K^T + mask) V; see `SoftmaxAttention`. A query that sees no key gives 0."""
    return weighted(
        "softmax", query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, causal_offset
    )


@part("softmax", "attention", title="Softmax attention", tasks=("sequence", "classification"))
class SoftmaxAttention(MultiheadAttention):
    """Softmax attention: the default, and what to compare with.

    Equation: out_i = sum_j a_ij v_j, a_i = softmax_j(q_i . k_j / sqrt(d)), d the size of a head.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None.

    Defaults: as torch's `nn.MultiheadAttention`, but for `need_weights`. rope turns queries and keys by their
    positions; num_kv_heads below num_heads is grouped-query attention.

    Raises: ValueError for sizes that do not fit, other dtypes than floats, an empty batch or NaN.

    Source: Vaswani et al., arXiv:1706.03762, equation 1.

    Not for: very long sequences, where its time grows with their square.
    """

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return softmax_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0, enable_gqa=True
        )
