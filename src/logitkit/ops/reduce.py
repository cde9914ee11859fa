"""Per-example losses to what `reduction` asks for."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of torch's three."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")


def reduce(
    loss: Float[Tensor, " batch"],
    reduction: str,
    weight: Float[Tensor, " batch"] | None = None,
) -> Tensor:
    """`loss` (batch,) as is, summed, or averaged; each row counts `weight` times (zero for ignored rows).

    The mean divides by the total weight, as `torch.nn.CrossEntropyLoss` does, and is 0 when that is 0.
    """
    if weight is None:
        return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()
    # A row of weight zero may hold inf (an ignored label can be anything): drop it, do not multiply it.
    loss = loss.where(weight != 0, loss.new_zeros(())) * weight
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)
