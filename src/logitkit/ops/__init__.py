"""Numerics shared by the rooms: input checks, reductions, and stable log-space functions."""

from logitkit.ops.checks import check_features, check_labels, check_logits, check_positive, values_visible
from logitkit.ops.logspace import comp_sum, log1mexp
from logitkit.ops.reduce import check_reduction, reduce

__all__ = [
    "check_features",
    "check_labels",
    "check_logits",
    "check_positive",
    "check_reduction",
    "comp_sum",
    "log1mexp",
    "reduce",
    "values_visible",
]
