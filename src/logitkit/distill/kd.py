"""Distillation as it began: the student learns the teacher's softened probabilities."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.distill.base import DistillationLoss
from logitkit.ops import check_labels, check_positive, linear_distillation
from logitkit.registry import Real, part


def kd(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 4.0,
) -> Float[Tensor, " batch"]:
    """temperature^2 KL(teacher || student) of the softened probabilities per row; see `KDLoss`."""
    student, teacher = (F.log_softmax(z / temperature, dim=-1) for z in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


@part(
    "kd",
    "distill",
    title="Knowledge distillation by soft labels",
    aliases=("soft_labels",),
    needs=("teacher_logits",),
    search_space={"temperature": Real(1.0, 8.0)},
)
class KDLoss(DistillationLoss):
    """Distillation by soft labels: a small network learns what a larger one finds likely, beside the labels.

    Equation: l = T^2 KL(softmax(t / T) || softmax(z / T)), z the student's logits and t the teacher's.

    Shapes: student_logits and teacher_logits (batch, classes) real scores, target (batch,) integer labels,
    which say no more than which rows to leave out; returns a scalar in nats, or (batch,) with
    `reduction="none"`.

    Defaults: T = 4, what later papers compare with. T^2 keeps gradients as large at every temperature.

    Raises: ValueError for a temperature that is not positive, wrong shapes or dtypes, NaN logits, labels out
    of range, an empty batch.

    Source: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2.

    Not for: training by itself where there are labels: add it to their loss (`regularize=kd`, with
    `teacher=`).
    """

    def __init__(
        self, temperature: float = 4.0, *, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def per_example(
        self,
        student: Float[Tensor, "batch classes"],
        teacher: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        return kd(student, teacher, self.temperature)

    def of_features(
        self,
        features: Float[Tensor, "batch d"],
        weight: Float[Tensor, "classes d"],
        teacher_features: Float[Tensor, "batch teacher_d"],
        teacher_weight: Float[Tensor, "classes teacher_d"],
        target: Int[Tensor, " batch"],
        bias: Float[Tensor, " classes"] | None = None,
        teacher_bias: Float[Tensor, " classes"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """The loss of the logits `features @ weight.T + bias` and the teacher's, neither of which is made:
        for vocabularies whose logits would fill the memory. See `ops.linear_distillation`."""
        target = check_labels(target, len(features), len(weight), self.ignore_index)
        return linear_distillation(
            features,
            weight,
            teacher_features,
            teacher_weight,
            bias,
            teacher_bias,
            temperature=self.temperature,
            token_weight=(target != self.ignore_index).double(),
            reduction=self.reduction,
        )
