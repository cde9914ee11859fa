"""Scores to weights: softmax and what to use instead."""

from logitkit.softmax.base import Normalizer
from logitkit.softmax.softmax import Softmax, softmax
from logitkit.softmax.stablemax import StableMax, collapse_fraction, log_stablemax, stablemax

__all__ = [
    "Normalizer",
    "Softmax",
    "StableMax",
    "collapse_fraction",
    "log_stablemax",
    "softmax",
    "stablemax",
]
