"""Signs as words and their products in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def pack(x: Float[Tensor, "rows k"]) -> Int[Tensor, "rows words"]:
    negative = F.pad((x < 0).long(), (0, -x.shape[1] % 64)).view(len(x), (x.shape[1] + 63) // 64, 64)
    return (negative << torch.arange(64, device=x.device)).sum(2)


def product(
    a: Int[Tensor, "batch m words"], b: Int[Tensor, "batch n words"], k: int
) -> Float[Tensor, "batch m n"]:
    with torch.autocast(a.device.type, enabled=False):
        return _signs(a, k) @ _signs(b, k).mT


def _signs(words: Int[Tensor, "batch rows words"], k: int) -> Float[Tensor, "batch rows k"]:
    bits = words[..., None] >> torch.arange(64, device=words.device) & 1
    return 1 - 2 * bits.flatten(2)[..., :k].float()
