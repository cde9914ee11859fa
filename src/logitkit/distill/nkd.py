"""NKD: distillation in which the classes that are not the label are a distribution of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.distill.base import DistillationLoss
from logitkit.ops import check_positive, linear_nkd
from logitkit.registry import Real, part


def log_softmax_of_others(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    """The log-softmax over the classes that are not the label, and 0 at the label."""
    y = target[:, None]
    return F.log_softmax(logits.scatter(1, y, -torch.inf), dim=1).scatter(1, y, 0.0)


def nkd(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """-T_y log S_y - gamma temperature^2 sum_{k != y} T^_k log S^_k per row; see `NKDLoss`."""
    y = target[:, None]
    teacher_y = F.softmax(teacher_logits, dim=1).gather(1, y)[:, 0]
    student_y = F.log_softmax(student_logits, dim=1).gather(1, y)[:, 0]
    student, teacher = (
        log_softmax_of_others(z / temperature, target) for z in (student_logits, teacher_logits)
    )
    return -teacher_y * student_y - gamma * temperature**2 * (teacher.exp() * student).sum(dim=1)


@part(
    "nkd",
    "distill",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized"
    " Loss and Customized Soft Labels",
    paper="arXiv:2303.13005",
    number=80,
    replaces="kd",
    needs=("teacher_logits",),
    search_space={"gamma": Real(0.5, 4.0), "temperature": Real(1.0, 4.0)},
)
class NKDLoss(DistillationLoss):
    """Normalised distillation: what a teacher knows of the other classes, however sure it is of the label.

    Equation: l = -T_y log S_y - gamma tau^2 sum_{k != y} T^_k log S^_k, S and T the softmaxes of student and
    teacher, S^ and T^ those over the classes that are not the label y, of logits divided by tau. In the
    cross-entropy -sum_k T_k log S_k these classes have a weight that vanishes where the teacher is sure, and
    student and teacher sum to different numbers over them.

    Shapes: student_logits and teacher_logits (batch, classes) real scores, target (batch,) integer labels;
    returns a scalar in nats, or (batch,) with `reduction="none"`. Its least value is not 0.

    Defaults: gamma = 1.5, tau = 1, those of ImageNet; `temperature` is tau.

    Raises: ValueError for gamma < 0, a temperature that is not positive, wrong shapes or dtypes, NaN logits,
    labels out of range, an empty batch.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023, arXiv:2303.13005, the section on NKD, and `nkd.py` of
    the authors' code.

    Not for: training by itself: the paper adds it to cross-entropy (`regularize=nkd`, with `teacher=`). A
    teacher that is wrong about the label is hardly listened to there, but is about the others.
    """

    def __init__(
        self,
        gamma: float = 1.5,
        temperature: float = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        check_positive(temperature=temperature)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}.")
        self.gamma = gamma
        self.temperature = temperature

    def per_example(
        self,
        student: Float[Tensor, "batch classes"],
        teacher: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        return nkd(student, teacher, target, self.gamma, self.temperature)

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
        for vocabularies whose logits would fill the memory. Less than the loss by gamma times the entropy of
        T^, which has no gradient; see `ops.linear_nkd`.

        Raises: ValueError, beside what the loss raises, for a temperature other than 1.
        """
        if self.temperature != 1:
            raise ValueError(f"of_features needs a temperature of 1, got {self.temperature}.")
        return linear_nkd(
            features,
            weight,
            teacher_features,
            teacher_weight,
            target,
            bias,
            teacher_bias,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
