"""Signs that can be trained through."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def straight_signs(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 where x >= 0, also at -0.0, and -1 elsewhere; NaN stays. The gradient is straight-through: that of
    the result where |x| < 1, and 0 elsewhere."""
    found = torch.where(x < 0, -1.0, 1.0).to(x.dtype).where(~x.isnan(), x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return found
    inside = torch.where(x.abs() < 1, x, 0)
    return found + (inside - inside.detach())
