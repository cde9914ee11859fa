"""Objectives on outputs: drop-ins for `torch.nn.CrossEntropyLoss`."""

from logitkit.losses.base import ClassificationLoss
from logitkit.losses.comp_sum import CompSum, comp_sum
from logitkit.losses.cross_entropy import CrossEntropy, cross_entropy

__all__ = ["ClassificationLoss", "CompSum", "CrossEntropy", "comp_sum", "cross_entropy"]
