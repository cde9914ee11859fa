"""Temperature scaling: the reference arm of every comparison of calibrators."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_labels, check_logits
from logitkit.registry import part

# The temperature stays within this factor of the logits' own spread.
LIMIT = 100.0


@part("temperature", "calibrate", title="Temperature scaling")
class TemperatureScaling(nn.Module):
    """One temperature for all logits, the default calibrator: it repairs over- and underconfidence with a
    single number and never changes a prediction.

    Equation: p = softmax(z / T), T = argmin_T -mean_i log softmax(z_i / T)_{y_i} over held-out (z, y).

    Shapes: `fit(logits, y)` with logits (batch, classes) and integer labels (batch,); `transform(logits)`
    -> probabilities (batch, classes), in at least float32. `temperature` is a scalar in the logits' units.

    Defaults: none to choose; T = 1 before `fit`. The fit is Newton's method in 1/T, in which the objective is
    convex, kept inside a shrinking bracket and run in float64 until the gradient vanishes. T is held
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
        z = check_logits(logits).double()
        target = check_labels(y, z.shape[0], z.shape[1])
        if not bool(torch.isfinite(z).all()):
            raise ValueError(
                f"logits to fit must be finite, got {int((~torch.isfinite(z)).sum())} that are not."
            )
        spread = (z - z.mean(dim=1, keepdim=True)).square().mean().sqrt()
        beta = _inverse_temperature(z / spread, target) if spread > 0 else spread.new_ones(())
        self.temperature = (spread / beta if spread > 0 else beta).clone()
        return self

    def transform(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Calibrated probabilities."""
        return torch.softmax(check_logits(logits) / self.temperature, dim=-1)


def _inverse_temperature(
    z: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """argmin over beta in [1/LIMIT, LIMIT] of the convex f(beta) = mean(logsumexp(beta z) - beta z_y).

    f' = mean(E_p[z] - z_y) and f'' = mean Var_p[z], p = softmax(beta z). A Newton step that leaves the
    bracket around the root of f' is replaced by bisection in log beta.
    """
    z = z - z.gather(1, target[:, None])  # so that z_y = 0 and f' = mean E_p[z]

    def slopes(beta: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(beta * z, dim=1)
        mean = (p * z).sum(dim=1, keepdim=True)
        return mean.mean(), (p * (z - mean).square()).sum(dim=1).mean()

    low, high = z.new_tensor(1 / LIMIT), z.new_tensor(LIMIT)
    if slopes(low)[0] >= 0:
        return low
    if slopes(high)[0] <= 0:
        return high
    beta = z.new_ones(())
    for _ in range(200):
        slope, curvature = slopes(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature
        previous, beta = beta, newton if low < newton < high else (low * high).sqrt()
        if slope == 0 or (beta - previous).abs() <= 1e-15 * beta:
            break
    return beta
