"""Softplus attention (LSSA), and the re-weighting that sharpens it for long inputs (LSSAR)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logitkit.attention.base import (
    MultiheadAttention,
    identity,
    repeat_heads,
    visible_keys,
    weighted,
    with_dropout,
)
from logitkit.ops.attention import Softplus
from logitkit.registry import Choice, Real, part


def reweight(
    weights: Float[Tensor, "*batch queries keys"],
    visible: Int[Tensor, "*#batch queries"],
    power: float = 3.0,
    offset: float = 0.0,
) -> Float[Tensor, "*batch queries keys"]:
    """relu(A_ij N_i - offset)^power, each row divided by its sum: any attention weights, sharpened.

    visible: N_i, how many keys row i sees. A row that the offset leaves nothing of stays as it was.
    """
    wide = weights.float() if weights.dtype in (torch.float16, torch.bfloat16) else weights
    kept = (wide * visible[..., None] - offset).relu()
    peak = kept.detach().amax(-1, keepdim=True)
    kept = (kept / peak.masked_fill(peak == 0, 1)) ** power
    sharp = kept / kept.sum(-1, keepdim=True).masked_fill(peak == 0, 1)
    return torch.where(peak > 0, sharp, wide).to(weights.dtype)


def softplus_attention(
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
    power: float = 1.0,
    offset: float = 0.0,
) -> Float[Tensor, "*batch heads queries out"]:
    """softplus(scale log(dim) log(N) Q K^T + mask)^power, each row divided by its sum, times V; see
    `SoftplusAttention`. An offset above 0 needs the whole matrix of weights."""

    def stage(value: Tensor, dropout_p: float, power: float) -> Tensor:
        return weighted(
            Softplus(power), query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa,
            causal_offset,
        )  # fmt: skip

    if offset == 0.0:
        return stage(value, dropout_p, power)
    seen = visible_keys(attn_mask, causal_offset if is_causal else None, query, key)

    def sharpened(value: Tensor) -> Tensor:
        weights = reweight(stage(identity(key), 0.0, 1.0), seen, power, offset)
        return weights @ repeat_heads(value, weights.shape[-3])

    return with_dropout(sharpened, key, value, dropout_p)


@part(
    "softplus",
    "attention",
    number=68,
    title="Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models",
    paper="arXiv:2501.13428",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"power": Choice(1.0, 3.0), "offset": Real(0.0, 0.5)},
)
class SoftplusAttention(MultiheadAttention):
    """Softplus attention: weights that nothing overflows, and that stay sharp on inputs longer than those of
    training.

    Equation: A_ij = softplus(s_ij) / sum_k softplus(s_ik), s_ij = log(d) log(N_i) q_i . k_j / sqrt(d), d the
    size of a head and N_i the number of keys that row i sees (LSSA). Re-weighted (LSSAR): R_ij = relu(A_ij
    N_i - offset)^power, each row divided by its sum again; A_ij N_i is 1 in a uniform row.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None.

    Defaults: power 1 and offset 0, no re-weighting. The paper trains with power 3 and raises it to 15 for
    inputs of many times the training length: `power` and `offset` can be set on the module at any time. With
    offset 0 the matrix of weights is never held; a row whose weights the offset takes all keeps them.

    Raises: ValueError for sizes that do not fit, a power that is not positive, an offset below 0, other
    dtypes than floats, an empty batch or NaN.

    Source: Gao, Spratling, arXiv:2501.13428, LSSA and LSSAR.

    Not for: weights of a model trained with softmax, which it does not approximate.
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
        qk_norm: bool = False,
        power: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        if not power > 0:
            raise ValueError(f"power must be positive, got {power}.")
        if not offset >= 0:
            raise ValueError(f"offset must not be negative, got {offset}.")
        self.power, self.offset = power, offset

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return softplus_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0, enable_gqa=True,
            power=self.power, offset=self.offset,
        )  # fmt: skip
