"""The losses in plain torch, over the whole matrix of similarities. Each returns a sum over rows."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.contrastive.pairs import Positives


def _similarities(x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"]) -> Float[Tensor, "rows columns"]:
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.T


def _logsumexp(s: Tensor, keep: Tensor) -> Tensor:
    """log sum_j exp(s_ij) over the columns to keep; -inf, without gradient, where there are none."""
    found = torch.logsumexp(s.masked_fill(~keep, -math.inf).masked_fill(~keep.any(1, keepdim=True), 0), 1)
    return torch.where(keep.any(1), found, -math.inf)


def decoupled(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"], positives: Positives, weight: Tensor
) -> Float[Tensor, ""]:
    """sum_i w_i sum_{p in P_i} softplus(log sum_{n not in P_i} exp(s_in) - s_ip), s = x y^T."""
    s = _similarities(x, y)
    positive = positives.mask(len(y))
    negative = _logsumexp(s, ~positive & ~positives.own_mask(len(y)))
    terms = F.softplus(torch.where(positive, negative[:, None] - s, -math.inf))
    return (weight * terms.sum(1)).sum()


def supervised(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"], positives: Positives, weight: Tensor
) -> Float[Tensor, ""]:
    """sum_i w_i (log sum_{j != i} exp(s_ij) - mean_{p in P_i} s_ip) over rows with positives."""
    s = _similarities(x, y)
    count = positives.counts()
    mean = (s * positives.mask(len(y))).sum(1) / count.clamp(min=1)
    terms = _logsumexp(s, ~positives.own_mask(len(y))) - mean
    return (weight * torch.where(count > 0, terms, 0)).sum()


def multi_similarity(
    x: Float[Tensor, "rows d"],
    y: Float[Tensor, "columns d"],
    positives: Positives,
    alpha: float,
    beta: float,
    base: float,
) -> Float[Tensor, ""]:
    """sum_i log(1 + sum_{p in P_i} exp(-alpha (s_ip - base))) / alpha
    + log(1 + sum_{n not in P_i} exp(beta (s_in - base))) / beta."""
    s = _similarities(x, y) - base
    positive = positives.mask(len(y))
    attract = F.softplus(_logsumexp(-alpha * s, positive)) / alpha
    repel = F.softplus(_logsumexp(beta * s, ~positive & ~positives.own_mask(len(y)))) / beta
    return (attract + repel).sum()


def sigmoid(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"], bias: Float[Tensor, ""], positives: Positives
) -> Float[Tensor, ""]:
    """-sum_ij log sigmoid(z_ij (s_ij + b)), z_ij = 1 for positives and -1 elsewhere."""
    s = _similarities(x, y) + bias
    return F.softplus(torch.where(positives.mask(len(y)), -s, s)).sum()


def repulsion(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"], own: Tensor, sharpness: float
) -> Float[Tensor, ""]:
    """-sum_i sum_{j != own_i} b_ij c_ij, c = |x_i - y_j|^2 = 2 - 2 x_i y_j, b = softmax_j(-sharpness c)."""
    cost = 2 - 2 * _similarities(x, y)
    rest = torch.arange(len(y), device=y.device) != own[:, None]
    weights = torch.softmax((-sharpness * cost).masked_fill(~rest, -torch.finfo(cost.dtype).max), 1)
    return -(weights * cost * rest).sum()


def triplets(
    x: Float[Tensor, "rows d"], y: Float[Tensor, "columns d"], positives: Positives, margin: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum over i, p in P_i, n not in P_i of max(0, d_ip + margin - d_in), d_ij = |x_i - y_j|, and the number
    of terms that are positive: per row the negatives are sorted, and every positive's share is a prefix."""
    positive = positives.mask(len(y))
    with torch.autocast(x.device.type, enabled=False):
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    rest = ~positive & ~positives.own_mask(len(y))
    negatives = d.masked_fill(~rest, math.inf).sort(1).values
    sums = F.pad(negatives.masked_fill(negatives.isinf(), 0).double().cumsum(1), (1, 0))
    threshold = d + margin
    below = torch.searchsorted(negatives.detach(), threshold.detach()) * positive
    terms = threshold.double() * below - sums.gather(1, below)
    return terms[positive].sum().to(x.dtype), below.sum().to(x.dtype)
