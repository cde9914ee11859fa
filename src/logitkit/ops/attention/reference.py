"""The whole matrix of weights in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.ops.attention.weights import Elementwise, Normalized, Weight


def attention(
    query: Float[Tensor, "heads queries dim"],
    key: Float[Tensor, "kv_heads keys dim"],
    value: Float[Tensor, "kv_heads keys out"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
    mask_of: list[int] | None,
    causal: int | None,
    scale: float | Tensor,
    weight: Weight,
) -> Float[Tensor, "heads queries out"]:
    """weights(scale Q K^T) V.

    mask is (masks, queries or 1, keys or 1), and head h takes mask_of[h]. With `causal` query i sees the keys
    up to i + causal. scale is a number or (heads or 1, queries, 1).
    """
    dtype = query.dtype
    # Half precision is computed in float32.
    q, k, v = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (query, key, value))
    group = len(q) // max(len(k), 1)
    if group > 1:
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = (scale * q) @ k.transpose(1, 2)
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if mask is not None:
        mask = mask[mask_of]
        if mask.dtype == torch.bool:
            hidden = hidden | ~mask
        else:
            scores = scores + mask
            hidden = hidden | (mask == -torch.inf)
    if causal is not None:
        hidden = hidden | ~torch.ones_like(hidden[0]).tril(causal)
    scores = scores.masked_fill(hidden, 0)
    if isinstance(weight, Normalized):
        # The result does not depend on the peak, so its derivative is not needed.
        peak = weight.size(scores.detach()).masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
        peak = peak.masked_fill(peak == -torch.inf, 0)
        w = weight.weigh(scores, peak).masked_fill(hidden, 0)
        total = w.sum(-1, keepdim=True) + weight.floor(peak)
        w = w / total.masked_fill(total == 0, 1)
    else:
        assert isinstance(weight, Elementwise)
        w = weight.weigh(scores).masked_fill(hidden, 0)
    return (w @ v).to(dtype)
