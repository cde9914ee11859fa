"""The sums in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def bin_sums(
    x: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], bins: int, from_logits: bool
) -> tuple[Float[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"], float, bool]:
    """Per bin, how many rows it has, their summed confidences and how many are right; and the largest
    score."""
    top, predicted = x.max(1)
    confidence = 1 / (x - top[:, None]).double().exp().sum(1) if from_logits else top.double()
    bin_ = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    ones = torch.ones_like(confidence)
    right = (predicted == target).double()
    counts, sums, correct = (torch.bincount(bin_, w, minlength=bins) for w in (ones, confidence, right))
    return counts, sums, correct, float(top.max()), bool(x.isnan().any())
