"""The slot: `loss(student_logits, teacher_logits, target)` with `reduction` and `ignore_index`. A part writes
its loss per example; what surrounds it is here. A student that is its own teacher has
`loss(student_logits, target, ...)`, as in `losses`."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_batch, check_logits, check_reduction, reduce, row_weights


class DistillationLoss(nn.Module):
    """Base of losses on the logits of a student and its teacher, who gets no gradient: subclasses define
    `per_example`.

    reduction: "mean", "sum" or "none".
    ignore_index: rows with this label count nothing and get no gradient.
    """

    def __init__(self, *, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.ignore_index = ignore_index

    def per_example(
        self,
        student: Float[Tensor, "batch classes"],
        teacher: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """The loss of each row."""
        raise NotImplementedError

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        student, target = check_batch(student_logits, target, self.ignore_index)
        teacher = check_logits(teacher_logits.detach(), "teacher_logits", student.shape[1])
        if len(teacher) != len(student):
            raise ValueError(f"teacher_logits must have {len(student)} rows, got {tuple(teacher.shape)}.")
        safe, counts = row_weights(target, None, self.ignore_index, student)
        return reduce(self.per_example(student, teacher.to(student.dtype), safe), self.reduction, counts)
