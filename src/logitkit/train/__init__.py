"""Optimisers, samplers and training procedures."""

from logitkit.train.ar2 import AR2
from logitkit.train.bivit import CrossLayerBinarization
from logitkit.train.counter_current import (
    CounterCurrent,
    CounterCurrentConv2d,
    CounterCurrentLinear,
    CounterCurrentNet,
    counter_current_loss,
)
from logitkit.train.hebbian import Hebbian
from logitkit.train.ngame import NGAME, NGAMESampler
from logitkit.train.perp_grad import PerpGrad, nlm_cosine, perpendicular

__all__ = [
    "AR2",
    "NGAME",
    "CounterCurrent",
    "CounterCurrentConv2d",
    "CounterCurrentLinear",
    "CounterCurrentNet",
    "CrossLayerBinarization",
    "Hebbian",
    "NGAMESampler",
    "PerpGrad",
    "counter_current_loss",
    "nlm_cosine",
    "perpendicular",
]
