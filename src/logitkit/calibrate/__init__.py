"""Post-hoc probabilities: `fit(logits, y)`, then `transform(logits)` -> probabilities."""

from logitkit.calibrate.correctness_aware import CorrectnessAware, ca_loss, image_views
from logitkit.calibrate.dbnorm import DualIS, inverted_softmax
from logitkit.calibrate.dual_dis import DualDIS
from logitkit.calibrate.soft_nms import SoftNMS, batched_soft_nms
from logitkit.calibrate.temperature import TemperatureScaling
from logitkit.calibrate.utility_probability import (
    UtilityToProbability,
    decode,
    rival_loss,
    utility_gradient,
)

__all__ = [
    "CorrectnessAware",
    "DualDIS",
    "DualIS",
    "SoftNMS",
    "TemperatureScaling",
    "UtilityToProbability",
    "batched_soft_nms",
    "ca_loss",
    "decode",
    "image_views",
    "inverted_softmax",
    "rival_loss",
    "utility_gradient",
]
