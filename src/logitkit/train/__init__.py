"""Optimisers, samplers and training procedures."""

from logitkit.train.perp_grad import PerpGrad, nlm_cosine, perpendicular

__all__ = ["PerpGrad", "nlm_cosine", "perpendicular"]
