"""Per-example losses to what `reduction` asks for."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.checks import values_visible

Reduction = Literal["none", "mean", "sum"]


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is one of torch's three."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")


def row_weights(
    target: Int[Tensor, " batch"],
    weight: Float[Tensor, " classes"] | None,
    ignore_index: int,
    like: Tensor,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"] | None]:
    """Labels with the ignored ones replaced by 0, and how much each row counts: 0 if ignored, else its
    class's `weight` (1 without). None when every row is seen to count the same."""
    kept = target != ignore_index
    if weight is None and values_visible(target) and bool(kept.all()):
        return target, None
    safe = target.where(kept, target.new_zeros(()))
    counts = kept.to(like.dtype)
    return safe, counts if weight is None else counts * weight.to(like)[safe]


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
