"""BiViT's attention: queries, keys and values of one bit, and weights of 0 and 1."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, repeat_heads, with_dropout
from logitkit.attention.softmax import softmax_attention
from logitkit.ops import binary_matmul, straight_signs, values_visible
from logitkit.registry import Choice, Real, part

Scale = Literal["none", "optimal"]

# Keys from which the mask's product with signs is faster on packed bits.
PAYS = 512


class SoftmaxAwareBinarize(nn.Module):
    """Softmax-aware binarisation: B_ij = 1 where A_ij >= ratio max_k A_ik, else 0, for rows of attention that
    a few large weights dominate. scale="optimal" multiplies row i by sum_j A_ij B_ij / sum_j B_ij, the
    factor of least squared error.

    Shapes: weights (..., keys), at least 0 -> same. A weight of 0 stays 0. The gradient is straight-through:
    that of the result, for every entry.
    Raises: ValueError for a ratio outside (0, 1] or another scale.
    """

    def __init__(self, ratio: float = 0.25, scale: Scale = "none") -> None:
        super().__init__()
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}.")
        if scale not in ("none", "optimal"):
            raise ValueError(f"scale must be 'none' or 'optimal', got {scale!r}.")
        self.ratio, self.scale = ratio, scale

    def mask(self, weights: Float[Tensor, "*rows keys"]) -> Bool[Tensor, "*rows keys"]:
        """B as booleans."""
        return (weights >= self.ratio * weights.amax(-1, keepdim=True)) & (weights > 0)

    def forward(self, weights: Float[Tensor, "*rows keys"]) -> Float[Tensor, "*rows keys"]:
        found = self.mask(weights).to(weights.dtype)
        if self.scale == "optimal":
            held = weights.detach() * found
            found = found * (held.sum(-1, keepdim=True) / found.sum(-1, keepdim=True).clamp(min=1))
        straight = torch.is_grad_enabled() and weights.requires_grad
        return found + (weights - weights.detach()) if straight else found


def softmax_aware_attention(
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
    ratio: float = 0.25,
    row_scale: Scale = "none",
) -> Float[Tensor, "*batch heads queries out"]:
    """B V, B the softmax-aware binarisation of softmax(scale Q K^T + mask); see `BiViTAttention`. Q, K and V
    are taken as they are."""
    if (
        query.shape[-1] != key.shape[-1]
        or key.shape[-3:-1] != value.shape[-3:-1]
        or query.shape[-3] % key.shape[-3]
        or not (enable_gqa or query.shape[-3] == key.shape[-3])
    ):
        raise ValueError(
            f"query, key and value do not fit: got {tuple(query.shape)}, {tuple(key.shape)} and"
            f" {tuple(value.shape)}, enable_gqa={enable_gqa}."
        )
    binarize, heads = SoftmaxAwareBinarize(ratio, row_scale), query.shape[-3]
    with torch.autocast(query.device.type, enabled=False):
        causal = causal_offset if is_causal else None
        weights = _weights(query, repeat_heads(key, heads), attn_mask, causal, scale)

        def mix(value: Tensor) -> Tensor:
            v = repeat_heads(value, heads).to(weights.dtype)
            if row_scale == "none" and _by_bits(v):
                mixed = binary_matmul(binarize.mask(weights), v.mT)
            else:
                mixed = binarize(weights) @ v
            return mixed.to(value.dtype)

        return with_dropout(mix, key, value, dropout_p)


@part(
    "bivit",
    "attention",
    number=49,
    title="BiViT: Extremely Compressed Binary Vision Transformer",
    paper="arXiv:2211.07091",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"ratio": Real(0.1, 0.5), "scale": Choice("none", "optimal")},
    no_half="rounding turns the signs of numbers near 0",
)
class BiViTAttention(MultiheadAttention):
    """BiViT's attention: sums and comparisons in the place of all products but the projections, which
    `layers=binary_linear` makes binary too.

    Equation: out_i = alpha_i sum_j B_ij sign(v_j), B_ij = 1 where A_ij >= ratio max_k A_ik, else 0, A_i =
    softmax_j(sign(q_i) . sign(k_j) / sqrt(d)), sign(0) = 1; alpha_i = 1, or with scale="optimal" sum_j A_ij
    B_ij / sum_j B_ij. Gradients: that of the output with A in the place of alpha B, and of signs where their
    argument lies within (-1, 1).

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights alpha B (batch, queries, keys) or None.

    Defaults: ratio 0.25 and no scale, as in the authors' code, where a projection with signs as its inputs
    follows: it ignores the scale, but passes gradients back only where |out| < 1, which without a scale is
    where out is 0. `binary` is True; as False, which stages of training make it, this is softmax attention.

    Raises: ValueError for sizes that do not fit, a ratio outside (0, 1], an unknown scale, other dtypes than
    floats, an empty batch or NaN.

    Source: He et al., ICCV 2023, arXiv:2211.07091, softmax-aware binarisation, and the authors'
    `BiAttention_SAB`.

    Not for: accuracy where memory and time are no concern.
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
        ratio: float = 0.25,
        scale: Scale = "none",
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        SoftmaxAwareBinarize(ratio, scale)  # says what is wrong with them
        self.ratio, self.scale, self.binary = ratio, scale, True

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's, of which the signs are taken."""
        q, k, v = super().project(query, key, value, start)
        return (straight_signs(q), straight_signs(k), straight_signs(v)) if self.binary else (q, k, v)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        seen: dict[str, Any] = {
            "attn_mask": mask, "is_causal": causal is not None, "causal_offset": causal or 0,
            "enable_gqa": True,
        }  # fmt: skip
        if not self.binary:
            return softmax_attention(query, key, value, **seen)
        return softmax_aware_attention(query, key, value, **seen, ratio=self.ratio, row_scale=self.scale)


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: int | None, scale: float | None
) -> Float[Tensor, "*batch heads queries keys"]:
    """softmax(scale Q K^T + mask), in float32 at least; rows that see no key are 0."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    q, k = (query.float(), key.float()) if half else (query, key)
    scores = (q @ k.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
    seen = None
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask != -torch.inf
        scores = scores if mask.dtype == torch.bool else scores + mask.masked_fill(~seen, 0)
    if causal is not None:
        triangle = torch.ones_like(scores[(0,) * (scores.ndim - 2)], dtype=torch.bool).tril(causal)
        seen = triangle if seen is None else seen & triangle
    if seen is None:
        return scores.softmax(-1)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen


def _by_bits(value: Tensor) -> bool:
    """Whether the mask's product with these values can be one of packed signs, which has no gradient, and
    pays as such."""
    able = value.shape[-2] >= PAYS and values_visible(value) and not torch.is_grad_enabled()
    return able and bool((value.abs() == 1).all())
