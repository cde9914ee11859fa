"""Scores to weights: softmax and what to use instead."""

from logitkit.softmax.base import Normalizer
from logitkit.softmax.softmax import Softmax, softmax
from logitkit.softmax.stablemax import StableMax, collapse_fraction, log_stablemax, stablemax
from logitkit.softmax.tempnet import TempNet, solve_tau, tau_cross_entropy
from logitkit.softmax.two_pass import ExtExp, TwoPass, TwoPassState, two_pass_softmax

__all__ = [
    "ExtExp",
    "Normalizer",
    "Softmax",
    "StableMax",
    "TempNet",
    "TwoPass",
    "TwoPassState",
    "collapse_fraction",
    "log_stablemax",
    "softmax",
    "solve_tau",
    "stablemax",
    "tau_cross_entropy",
    "two_pass_softmax",
]
