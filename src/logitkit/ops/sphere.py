"""The unit sphere: directions and the cosines between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def unit(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """x / |x| along the last axis, in at least float32; a zero vector stays zero.

    Vectors are first scaled by their largest entry, so none is too long or too short for its norm to be
    represented. The direction does not depend on that scale, which therefore carries no gradient.
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    # The norm is now at least 1, but for zero vectors.
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=0.5)


def cosine(x: Float[Tensor, "n d"], w: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosines between the rows of `x` and of `w`, in at least float32 also under autocast."""
    e, v = unit(x), unit(w)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(e, v.to(e.dtype))
