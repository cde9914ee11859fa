"""Scores to weights: softmax and what to use instead."""

from logitkit.softmax.base import Normalizer
from logitkit.softmax.softmax import Softmax, softmax
from logitkit.softmax.stablemax import StableMax, collapse_fraction, log_stablemax, stablemax
from logitkit.softmax.two_pass import ExtExp, TwoPass, TwoPassState, two_pass_softmax

__all__ = [
    "ExtExp",
    "Normalizer",
    "Softmax",
    "StableMax",
    "TwoPass",
    "TwoPassState",
    "collapse_fraction",
    "log_stablemax",
    "softmax",
    "stablemax",
    "two_pass_softmax",
]
