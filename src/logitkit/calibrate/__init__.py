"""Post-hoc probabilities: `fit(logits, y)`, then `transform(logits)` -> probabilities."""

from logitkit.calibrate.dbnorm import DualDIS, DualIS, inverted_softmax
from logitkit.calibrate.temperature import TemperatureScaling

__all__ = ["DualDIS", "DualIS", "TemperatureScaling", "inverted_softmax"]
