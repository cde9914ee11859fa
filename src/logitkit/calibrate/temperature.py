"""Temperature scaling: the reference arm of every comparison of calibrators."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_logits, fit_temperature
from logitkit.registry import part


@part("temperature", "calibrate", title="Temperature scaling")
class TemperatureScaling(nn.Module):
    """One temperature for all logits, the default calibrator: it repairs over- and underconfidence with a
    single number and never changes a prediction.

    Equation: p = softmax(z / T), T = argmin_T -mean_i log softmax(z_i / T)_{y_i} over held-out (z, y).

    Shapes: `fit(logits, y)` with logits (batch, classes) and integer labels (batch,); `transform(logits)`
    -> probabilities (batch, classes), in at least float32. `temperature` is a scalar in the logits' units.

    Defaults: none to choose; T = 1 before `fit`. The fit is `ops.fit_temperature`: Halley's method in 1/T, in
    which the objective is convex, run in float64 until the gradient vanishes. T is held
    within a factor 100 of the logits' root mean square deviation from their row mean. The bound is met when
    there is no minimum inside it: every label has the largest logit (T at its least, nearly one-hot
    probabilities: not enough held-out data to calibrate on), or the logits are no better than chance (T at
    its largest, nearly uniform). Logits that are all equal leave T = 1.

    Raises: ValueError for wrong shapes or dtypes, logits that are not finite in `fit` or NaN in `transform`,
    labels out of range, an empty batch.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv:1706.04599, equation 9.

    Not for: miscalibration that differs between classes, or reordering predictions.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> TemperatureScaling:
        """Find the temperature on held-out logits and labels; returns self."""
        self.temperature = torch.tensor(fit_temperature(logits, y), dtype=torch.float64, device=logits.device)
        return self

    def transform(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Calibrated probabilities."""
        return torch.softmax(check_logits(logits) / self.temperature, dim=-1)
