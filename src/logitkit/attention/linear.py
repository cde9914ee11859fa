"""Linear attention: the weight of a key is a product of features, so that time grows with the tokens."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, key_mask, repeat_heads, with_dropout
from logitkit.registry import part


def linear_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any 1 keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch heads queries out"]:
    """phi(Q) (phi(K)^T V) / phi(Q) (phi(K)^T 1), phi = elu + 1; see `LinearAttention`.

    attn_mask hides keys from all queries alike; `scale` has no meaning here and must be None.
    """
    if scale is not None:
        raise ValueError(f"linear attention has no scale, got scale={scale}.")
    seen = key_mask(attn_mask, "linear attention")
    heads = query.shape[-3] if enable_gqa else key.shape[-3]
    q, k = F.elu(query) + 1, F.elu(repeat_heads(key, heads)) + 1
    if seen is not None:
        k = k * seen

    def mix(value: Tensor) -> Tensor:
        value = repeat_heads(value, heads)
        mixed = ops.linear_attention(q, k, value, feature=None, is_causal=is_causal, eps=1e-6)
        assert isinstance(mixed, Tensor)
        return mixed

    return with_dropout(mix, key, value, dropout_p)


@part("linear", "attention", title="Linear attention (elu + 1)", tasks=("sequence", "classification"))
class LinearAttention(MultiheadAttention):
    """Linear attention: time and memory that grow with the tokens, and a state of fixed size to decode from.

    Equation: out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + 1e-6), phi(x) = elu(x) +
    1.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None.

    Defaults: the feature map of the paper.

    Raises: ValueError for sizes that do not fit, a mask that differs between queries, other dtypes than
    floats, an empty batch or NaN.

    Source: Katharopoulos et al., ICML 2020, arXiv:2006.16236, equations 4 to 7.

    Not for: recalling one of many tokens exactly, which its state of fixed size does not hold.
    """

    takes = MultiheadAttention.takes - {"mask"}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return linear_attention(query, key, value, mask, is_causal=causal is not None, enable_gqa=True)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the state is the sums over keys, and has the same size however many there were."""
        self._check_step(x)
        start, sums = (0, None) if state is None else state
        q, k, v = self.project(x, x, x, start)
        mixed, sums = ops.linear_attention(
            F.elu(q) + 1, F.elu(repeat_heads(k, self.num_heads)) + 1, repeat_heads(v, self.num_heads),
            feature=None, is_causal=True, eps=1e-6, initial_state=sums, return_state=True,
        )  # fmt: skip
        return self.merge(mixed), (start + x.shape[1], sums)
