"""Mixtures of Gaussian experts of which a gate keeps the top K."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def log_gate(
    scores: Float[Tensor, "batch k"], bias: Float[Tensor, " k"], active: int
) -> Float[Tensor, "batch k"]:
    """log softmax of scores + bias over the `active` largest scores of each row, -inf for the others. The
    bias takes no part in the selection."""
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(active, dim=1).indices, True)
    return torch.log_softmax((scores + bias).masked_fill(~kept, -torch.inf), dim=1)


def gaussian_log_joint(
    y: Float[Tensor, " batch"],
    log_pi: Float[Tensor, "batch k"],
    mean: Float[Tensor, "batch k"],
    variance: Float[Tensor, " k"],
) -> Float[Tensor, "batch k"]:
    """log pi_i N(y | mean_i, variance_i): its logsumexp over experts is the mixture's log-density, its
    softmax the experts' shares of each row."""
    normal = (y[:, None] - mean).square() / variance + (2 * math.pi * variance).log()
    return log_pi - 0.5 * normal
