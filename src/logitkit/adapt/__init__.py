"""Fitting a trained network to something new, or making it forget."""

from logitkit.adapt.flat import FLATLoss, answer_probability
from logitkit.adapt.prototype import Prototype
from logitkit.adapt.repri import (
    Adapted,
    RePRI,
    foreground_cosines,
    pixel_entropy,
    proportion_kl,
    support_cross_entropy,
)
from logitkit.adapt.unlearning import dpo, grad_diff, gradient_ascent, npo

__all__ = [
    "Adapted",
    "FLATLoss",
    "Prototype",
    "RePRI",
    "answer_probability",
    "dpo",
    "foreground_cosines",
    "grad_diff",
    "gradient_ascent",
    "npo",
    "pixel_entropy",
    "proportion_kl",
    "support_cross_entropy",
]
