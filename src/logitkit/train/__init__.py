"""Optimisers, samplers and training procedures."""

from logitkit.train.ngame import NGAME, NGAMESampler
from logitkit.train.perp_grad import PerpGrad, nlm_cosine, perpendicular

__all__ = ["NGAME", "NGAMESampler", "PerpGrad", "nlm_cosine", "perpendicular"]
