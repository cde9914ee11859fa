"""The slot: `loss(logits, target)` with `reduction`, `ignore_index` and `weight` as in
`torch.nn.CrossEntropyLoss`. A part writes its loss per example; what surrounds it is here."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_labels, check_logits, check_reduction, reduce, values_visible

__all__ = ["ClassificationLoss", "check_batch", "row_weights"]


def check_batch(
    logits: Tensor, target: Tensor, ignore_index: int = -100
) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]:
    """Both inputs checked: logits in at least float32, labels int64 (see `logitkit.ops.checks`)."""
    logits = check_logits(logits)
    return logits, check_labels(target, logits.shape[0], logits.shape[1], ignore_index)


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


class ClassificationLoss(nn.Module):
    """Base of losses on (logits, integer labels): subclasses define `per_example`.

    reduction: "mean" (by total weight, as torch does), "sum" or "none".
    ignore_index: rows with this label count nothing and get no gradient.
    weight: (classes,) rescaling of each class, or None.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The loss of each row."""
        raise NotImplementedError

    def forward(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(logits, target, self.ignore_index)
        safe, counts = row_weights(target, self.weight, self.ignore_index, logits)
        return reduce(self.per_example(logits, safe), self.reduction, counts)
