"""Sigmoid attention: every weight by itself, no row normalised."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, weighted
from logitkit.ops.attention import Sigmoid
from logitkit.registry import Choice, part


def sigmoid_attention(
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
    bias: float | None = None,
) -> Float[Tensor, "*batch heads queries out"]:
    """sigmoid(scale Q K^T + bias + mask) V; see `SigmoidAttention`. bias: -log(number of keys) by default."""
    return weighted(
        Sigmoid(bias), query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, causal_offset
    )


@part(
    "sigmoid",
    "attention",
    number=31,
    title="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
    paper="arXiv:2409.04431",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"qk_norm": Choice(False, True)},
)
class SigmoidAttention(MultiheadAttention):
    """Sigmoid attention: weights that do not compete for a row's sum, as good as softmax and faster in
    blocks.

    Equation: out_i = sum_j sigmoid(q_i . k_j / sqrt(d) + b) v_j, b = -log n, so that a row of n zero scores
    sums to about 1 (to n / (n + 1)) and the output does not grow with n. bias="learned" starts every head
    there. With `qk_norm` queries and keys pass a LayerNorm per head first; with `layer_scale` the output is
    multiplied by a learned vector that starts at that number.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None. Weights need not sum to 1.

    Defaults: b = -log n, the paper's. n_ref=None takes n from each call, the number of keys; a causal
    language model whose lengths vary, or which decodes token by token, wants n_ref = the length it is trained
    on, and `step` needs it. The paper recommends qk_norm and layer_scale=1e-4 for large vision models.

    Raises: ValueError for sizes that do not fit, another bias, other dtypes than floats, an empty batch or
    NaN.

    Source: Ramapuram et al., ICLR 2025, arXiv:2409.04431, section 2 and 3.

    Not for: probes that read weights as a distribution.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        num_kv_heads: int | None = None,
        rope: bool = False,
        score_bias: float | Literal["-logn", "learned"] = "-logn",
        n_ref: int | None = None,
        qk_norm: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        if isinstance(score_bias, str) and score_bias not in ("-logn", "learned"):
            raise ValueError(f"score_bias must be a number, '-logn' or 'learned', got {score_bias!r}.")
        if n_ref is not None and n_ref < 1:
            raise ValueError(f"n_ref must be at least 1, got {n_ref}.")
        if score_bias == "learned" and n_ref is None:
            raise ValueError("score_bias='learned' starts at -log(n_ref): give n_ref, the number of keys.")
        self.score_bias, self.n_ref = score_bias, n_ref
        start = 0.0 if n_ref is None else -math.log(n_ref)
        self.head_bias = nn.Parameter(torch.full((num_heads,), start)) if score_bias == "learned" else None
        self.layer_scale = (
            None if layer_scale is None else nn.Parameter(torch.full((embed_dim,), float(layer_scale)))
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        scale = None
        if self.head_bias is not None:
            # One more feature of queries and keys adds the bias to the scores.
            scale = 1.0
            column = self.head_bias.to(query.dtype)[:, None, None].expand(*query.shape[:-1], 1)
            query = torch.cat([query * self.head_dim**-0.5, column], -1)
            key = torch.cat([key, key.new_ones(*key.shape[:-1], 1)], -1)
            bias = 0.0
        elif isinstance(self.score_bias, str):
            bias = -math.log(key.shape[-2] if self.n_ref is None else self.n_ref)
        else:
            bias = float(self.score_bias)
        return sigmoid_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0, scale=scale,
            enable_gqa=True, bias=bias,
        )  # fmt: skip

    def merge(self, mixed: Tensor) -> Tensor:
        out = super().merge(mixed)
        return out if self.layer_scale is None else out * self.layer_scale

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the bias must not depend on how many tokens there are: needs n_ref or a number."""
        if self.score_bias == "-logn" and self.n_ref is None:
            raise ValueError("step needs n_ref, the number of keys that the bias -log n stands for.")
        return super().step(x, state)
