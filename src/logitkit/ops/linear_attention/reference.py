"""Chunks of tokens in plain torch: the matrix of weights within a chunk, the state between chunks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Tokens in a chunk.
CHUNK = 64


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
    """The output and the state after the last key; matrix and vector are the state before the first."""
    dtype = query.dtype
    q, k, v = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (query, key, value))
    if elu:
        # Not through elu, which loses exp(x) to the 1 it subtracts.
        q, k = (torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (q, k))
    if not causal:
        matrix = matrix + k.transpose(1, 2) @ v
        vector = vector + k.sum(1)
        top, below = q @ matrix, (q @ vector.unsqueeze(2))
    else:
        tops, belows = [], []
        for q_, k_, v_ in zip(q.split(CHUNK, 1), k.split(CHUNK, 1), v.split(CHUNK, 1), strict=True):
            weights = (q_ @ k_.transpose(1, 2)).tril()
            tops.append(weights @ v_ + q_ @ matrix)
            belows.append(weights.sum(2, keepdim=True) + q_ @ vector.unsqueeze(2))
            matrix = matrix + k_.transpose(1, 2) @ v_
            vector = vector + k_.sum(1)
        top, below = torch.cat(tops, 1), torch.cat(belows, 1)
    return (top / (below + eps) if normalize else top).to(dtype), matrix, vector
