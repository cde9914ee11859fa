"""Post-hoc probabilities: `fit(logits, y)`, then `transform(logits)` -> probabilities."""

from logitkit.calibrate.temperature import TemperatureScaling

__all__ = ["TemperatureScaling"]
