"""Teacher to student: `loss(student_logits, teacher_logits, target)`."""

from logitkit.distill.base import DistillationLoss
from logitkit.distill.kd import KDLoss, kd
from logitkit.distill.nkd import NKDLoss, nkd
from logitkit.distill.uskd import USKDLoss, zipf_labels

__all__ = ["DistillationLoss", "KDLoss", "NKDLoss", "USKDLoss", "kd", "nkd", "zipf_labels"]
