"""Numbers that judge a prediction. Thin over torchmetrics, which is imported when first used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitkit.errors import InputError, nearest
from logitkit.ops import calibration_error

# metric -> whether more is better
METRICS = {
    "classification": {
        "accuracy": True, "balanced_accuracy": True, "nll": False, "ece": False, "ood_auroc": True,
        "noise_accuracy": True,
    },
    "regression": {"rmse": False, "mae": False, "r2": True, "ood_auroc": True, "noise_rmse": False},
}  # fmt: skip
PRIMARY = {"classification": "accuracy", "regression": "rmse"}
BINS = 15


def check_metric(metric: str | None, task: str) -> str:
    """`metric`, or the task's usual one. Raises InputError for one that the task does not have."""
    if metric is None:
        return PRIMARY[task]
    if metric not in METRICS[task]:
        raise InputError(
            f"metric={metric!r} is not a metric of {task}.{nearest(metric, METRICS[task])}"
            f" Metrics: {', '.join(METRICS[task])}."
        )
    return metric


def classification(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, mean recall over the classes present, negative log-likelihood in nats, and expected
    calibration error (15 bins of equal width) of (batch, classes) probabilities."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    right = (predicted == y).double()
    counts = torch.bincount(y, minlength=classes).double()
    recall = torch.bincount(y, weights=right, minlength=classes) / counts
    tiny = torch.finfo(probabilities.dtype).tiny
    return {
        "accuracy": right.mean().item(),
        "balanced_accuracy": recall[counts > 0].mean().item(),
        "nll": -probabilities.gather(1, y[:, None]).clamp(min=tiny).double().log().mean().item(),
        "ece": calibration_error(probabilities, y, bins=BINS),
    }


def regression(predictions: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean squared error and mean absolute error in units of y, and the share of variance explained."""
    error = (predictions - y).double()
    variance = (y - y.mean()).double().square().mean()
    return {
        "rmse": error.square().mean().sqrt().item(),
        "mae": error.abs().mean().item(),
        "r2": 1.0 - (error.square().mean() / variance.clamp(min=1e-300)).item(),
    }


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an outside example scores higher than an inside one, ties counting half."""
    from torchmetrics.functional.classification import binary_auroc

    scores = torch.cat([inside, outside]).double()
    # torchmetrics passes anything outside [0, 1] through a sigmoid, which rounds large scores together;
    # ranks carry the same order without that.
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return binary_auroc(ranks / max(ranks.max().item(), 1.0), labels).item()


def reliability(probabilities: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Mean confidence, accuracy and count in each of 15 equal bins of the top probability."""
    confidence, predicted = probabilities.double().max(1)
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    count = torch.bincount(bins, minlength=BINS).double()
    filled = count.clamp(min=1)
    return {
        "confidence": (torch.bincount(bins, weights=confidence, minlength=BINS) / filled).tolist(),
        "accuracy": (
            torch.bincount(bins, weights=(predicted == y).double(), minlength=BINS) / filled
        ).tolist(),
        "count": count.tolist(),
    }


def histogram(inside: Tensor, outside: Tensor, bins: int = 30) -> dict[str, Any]:
    """Counts of both score sets over common bins, from the 0.5th to the 99.5th percentile of all."""
    both = torch.cat([inside, outside]).double()
    low, high = (both.quantile(q).item() for q in (0.005, 0.995))
    high = high if high > low else low + 1.0
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)

    def counts(scores: Tensor) -> list[int]:
        return torch.histc(scores.double().clamp(low, high), bins, low, high).long().tolist()

    return {"edges": edges.tolist(), "inside": counts(inside), "outside": counts(outside)}
