"""Numerics shared by the rooms: input checks, reductions, random draws, and stable log-space functions."""

from logitkit.ops.checks import (
    check_batch,
    check_features,
    check_labels,
    check_logits,
    check_positive,
    check_regression,
    values_visible,
)
from logitkit.ops.dispatch import KernelWarning, use
from logitkit.ops.logspace import comp_sum, log1mexp, log_odds_against
from logitkit.ops.random import draw_normal, draw_uniform
from logitkit.ops.reduce import check_reduction, reduce, row_weights
from logitkit.ops.softmax import log_softmax, logsumexp, softmax
from logitkit.ops.temperature import fit_temperature

__all__ = [
    "KernelWarning",
    "check_batch",
    "check_features",
    "check_labels",
    "check_logits",
    "check_positive",
    "check_reduction",
    "check_regression",
    "comp_sum",
    "draw_normal",
    "draw_uniform",
    "fit_temperature",
    "log1mexp",
    "log_odds_against",
    "log_softmax",
    "logsumexp",
    "reduce",
    "row_weights",
    "softmax",
    "use",
    "values_visible",
]
