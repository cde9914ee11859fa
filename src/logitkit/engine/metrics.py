"""Numbers that judge a prediction. Thin over torchmetrics, which is imported when first used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from logitkit.ops import calibration_error

BINS = 15


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


# Of the propensity model (Jain, Prabhu, Varma, KDD 2016), for collections that have none of their own.
PROPENSITY_A, PROPENSITY_B = 0.55, 1.5


def multilabel(scores: Tensor, y: Tensor, train: Tensor | None = None) -> dict[str, float]:
    """How much of the top of each row's ranking is relevant.

    scores: (batch, labels); y: (batch, most) lists of relevant labels, filled up with -1.
    p@k is the share of the top k that is relevant, ndcg@k weighs places by 1 / log2(place + 1). With
    the training rows' `train` also psp@k, p@k with label l counting 1 + C (n_l + 1.5)^-0.55, n_l its
    training rows and C = (log n - 1) 2.5^0.55 of n rows in all, over the most that any ranking could reach.
    Rows without labels are left out.
    """
    batch, labels = scores.shape
    relevant = torch.zeros(batch, labels + 1, dtype=torch.bool)
    relevant.scatter_(1, torch.where(y < 0, labels, y), True)
    relevant = relevant[:, :labels]
    some = relevant.any(1)
    relevant, scores = relevant[some], scores[some]
    deep = min(5, labels)
    top = scores.topk(deep, 1).indices
    hit = relevant.gather(1, top).double()
    discount = 1 / torch.arange(2, deep + 2, dtype=torch.float64).log2()
    best = torch.where(torch.arange(deep) < relevant.sum(1, keepdim=True), discount, 0.0).sum(1)
    found = {f"p@{k}": hit[:, :k].sum(1).div(k).mean().item() for k in (1, 3, 5)}
    found["ndcg@5"] = ((hit * discount).sum(1) / best).mean().item()
    if train is None:
        return found
    counts = torch.bincount(train[train >= 0], minlength=labels).double()
    c = (math.log(len(train)) - 1) * (PROPENSITY_B + 1) ** PROPENSITY_A
    weight = 1 + c * (counts + PROPENSITY_B) ** -PROPENSITY_A
    gain, most = hit * weight[top], (relevant * weight).topk(deep, 1).values
    return found | {f"psp@{k}": (gain[:, :k].sum() / most[:, :k].sum()).item() for k in (1, 5)}


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
