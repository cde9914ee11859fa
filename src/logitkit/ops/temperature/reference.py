"""The objective's derivatives in plain torch, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def derivatives(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], beta: float
) -> tuple[float, float, float]:
    """First three derivatives in beta of mean_i (logsumexp(beta z_i) - beta z_iy): the first three cumulants
    of z under p = softmax(beta z), averaged over the batch, the first of them minus the mean z_y."""
    z = logits.double()
    z = z - z.gather(1, target[:, None])  # so that z_y = 0
    p = torch.softmax(beta * z, dim=1)
    mean = (p * z).sum(dim=1, keepdim=True)
    second, third = ((p * (z - mean) ** k).sum(dim=1).mean() for k in (2, 3))
    return float(mean.mean()), float(second), float(third)


def spread(logits: Float[Tensor, "batch classes"]) -> float:
    """Root mean square deviation of the logits from their row's mean."""
    z = logits.double()
    return float((z - z.mean(dim=1, keepdim=True)).square().mean().sqrt())
