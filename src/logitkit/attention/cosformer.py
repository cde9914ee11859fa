"""cosFormer: linear attention with relu features and weights that fall off with distance."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, key_mask, repeat_heads, with_dropout
from logitkit.registry import part

# Added to the sum of a row's weights. The authors' 1e-6 lets rounding decide rows that have next to no
# positive feature in common with their keys.
EPS = 1e-2


def cosformer_features(
    x: Float[Tensor, "*batch tokens dim"], start: int, max_len: int
) -> Float[Tensor, "*batch tokens twice"]:
    """relu(x_i) times cos(pi i / 2 M) and sin(pi i / 2 M), side by side, M = max_len; i counts from `start`.

    The product of two such features is relu(q_i) . relu(k_j) cos(pi (i - j) / 2 M). In float32 at least.
    """
    end = start + x.shape[-2]
    if end > max_len:
        raise ValueError(
            f"max_len must be at least the number of tokens, or weights turn negative: got {max_len} for"
            f" {end} tokens."
        )
    x = x.relu().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    angle = math.pi / 2 / max_len * torch.arange(start, end, device=x.device, dtype=x.dtype)[:, None]
    return torch.cat([x * angle.cos(), x * angle.sin()], -1)


def cosformer_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any 1 keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    max_len: int | None = None,
) -> Float[Tensor, "*batch heads queries out"]:
    """sum_j w_ij v_j / (sum_j w_ij + eps), w_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2 M); see
    `CosformerAttention`.

    max_len: M, the number of tokens by default. attn_mask hides keys from all queries alike; `scale` has no
    meaning here and must be None.
    """
    if scale is not None:
        raise ValueError(f"cosFormer has no scale, got scale={scale}.")
    max_len = max(query.shape[-2], key.shape[-2]) if max_len is None else max_len
    q, k = (cosformer_features(x, 0, max_len) for x in (query, key))
    heads = query.shape[-3] if enable_gqa else key.shape[-3]
    return _mix(q, repeat_heads(k, heads), value, attn_mask, dropout_p, is_causal, heads)


def _mix(
    q: Tensor, k: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, causal: bool, heads: int
) -> Tensor:
    seen = key_mask(mask, "cosFormer")
    features = k if seen is None else k * seen

    def mix(value: Tensor) -> Tensor:
        return _sums(q, features, repeat_heads(value, heads), causal)[0]

    return with_dropout(mix, k.to(value.dtype), value, dropout_p)


def _sums(q: Tensor, k: Tensor, value: Tensor, causal: bool, state: Any = None) -> tuple[Tensor, Any]:
    """The mixture in the dtype of values, and the state after it. Features stay in float32 under autocast:
    few of them are positive, so that sums can be small."""
    with torch.autocast(q.device.type, enabled=False):
        mixed, state = ops.linear_attention(
            q, k, value.to(q.dtype), feature=None, is_causal=causal, eps=EPS, initial_state=state,
            return_state=True,
        )  # fmt: skip
    return mixed.to(value.dtype), state


@part(
    "cosformer",
    "attention",
    number=142,
    title="Neural Architecture Search on Efficient Transformers and Beyond",
    paper="arXiv:2207.13955",
    replaces="softmax",
    tasks=("sequence", "classification"),
)
class CosformerAttention(MultiheadAttention):
    """cosFormer attention: the efficient attention of a search space that mixes it with softmax, layer by
    layer (`models.AttentionSupernet`); time linear in the tokens, weights that favour what is near.

    Equation: out_i = sum_j w_ij v_j / (sum_j w_ij + eps), w_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2
    M), by features of twice the width, as cos(a - b) = cos a cos b + sin a sin b.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None. A row without a common positive feature is 0.

    Defaults: eps = 0.01. M = max_len, the most tokens there can be; None takes the number of tokens of each
    call, and `step` needs the number.

    Raises: ValueError for sizes that do not fit, more tokens than max_len, a mask that differs between
    queries, other dtypes than floats, an empty batch or NaN.

    Source: Liu et al., arXiv:2207.13955, its efficient attention; Qin et al., ICLR 2022, arXiv:2202.08791,
    its linear attention with cos-based re-weighting.

    Not for: exact recall of one of many tokens; inputs longer than max_len.
    """

    takes = MultiheadAttention.takes - {"mask"}

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        max_len: int | None = None,
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, qk_norm=qk_norm)
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        self.max_len = max_len

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's, queries and keys as features."""
        q, k, v = super().project(query, key, value, start)
        most = max(q.shape[-2], k.shape[-2]) if self.max_len is None else self.max_len
        return cosformer_features(q, start, most), cosformer_features(k, start, most), v

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        key = repeat_heads(key, self.num_heads)
        return _mix(query, key, value, mask, 0.0, causal is not None, self.num_heads)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the state is the sums over keys, and has the same size however many there were."""
        self._check_step(x)
        if self.max_len is None:
            raise ValueError("step needs max_len, the most tokens there can be: got None.")
        start, sums = (0, None) if state is None else state
        q, k, v = self.project(x, x, x, start)
        k, v = repeat_heads(k, self.num_heads), repeat_heads(v, self.num_heads)
        mixed, sums = _sums(q, k, v, True, sums)
        return self.merge(mixed), (start + x.shape[1], sums)
