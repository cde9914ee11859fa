"""Fitting a trained network to something new, or making it forget."""

from logitkit.adapt.flat import FLATLoss, answer_probability
from logitkit.adapt.unlearning import dpo, grad_diff, gradient_ascent, npo

__all__ = ["FLATLoss", "answer_probability", "dpo", "grad_diff", "gradient_ascent", "npo"]
