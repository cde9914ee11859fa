"""The slot: `loss(logits, target)` with `reduction`, `ignore_index` and `weight` as in
`torch.nn.CrossEntropyLoss`; for regression `loss(output, target)` as in `torch.nn.MSELoss`. A part writes its
loss per example; what surrounds it is here."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_batch, check_reduction, check_regression, reduce, row_weights


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


class RegressionLoss(nn.Module):
    """Base of losses on (one output, one number): subclasses define `per_example`.

    reduction: "mean", "sum" or "none".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def per_example(
        self, output: Float[Tensor, " batch"], target: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """The loss of each row."""
        raise NotImplementedError

    def forward(
        self,
        output: Float[Tensor, " batch"] | Float[Tensor, "batch 1"],
        target: Float[Tensor, " batch"] | Float[Tensor, "batch 1"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        output, target = check_regression(output, target)
        return reduce(self.per_example(output, target), self.reduction)
