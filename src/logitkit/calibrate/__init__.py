"""Post-hoc probabilities: `fit(logits, y)`, then `transform(logits)` -> probabilities."""

from logitkit.calibrate.correctness_aware import CorrectnessAware, ca_loss, image_views
from logitkit.calibrate.dbnorm import DualDIS, DualIS, inverted_softmax
from logitkit.calibrate.soft_nms import SoftNMS, batched_soft_nms
from logitkit.calibrate.temperature import TemperatureScaling

__all__ = [
    "CorrectnessAware",
    "DualDIS",
    "DualIS",
    "SoftNMS",
    "TemperatureScaling",
    "batched_soft_nms",
    "ca_loss",
    "image_views",
    "inverted_softmax",
]
