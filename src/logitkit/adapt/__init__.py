"""Fitting a trained network to something new, or making it forget."""

from logitkit.adapt.dpo import DPO
from logitkit.adapt.flat import FLATLoss, answer_probability
from logitkit.adapt.grad_diff import GradDiff
from logitkit.adapt.gradient_ascent import GradientAscent
from logitkit.adapt.npo import NPO
from logitkit.adapt.prototype import Prototype
from logitkit.adapt.repri import (
    Adapted,
    RePRI,
    foreground_cosines,
    pixel_entropy,
    proportion_kl,
    support_cross_entropy,
)
from logitkit.adapt.unlearning import Unlearner, dpo, grad_diff, gradient_ascent, npo

__all__ = [
    "DPO",
    "NPO",
    "Adapted",
    "FLATLoss",
    "GradDiff",
    "GradientAscent",
    "Prototype",
    "RePRI",
    "Unlearner",
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
