"""How well a matrix of similarities between queries and a gallery retrieves, and whether it has hubs."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logitkit.ops.checks import check_logits


def retrieval_ranks(
    similarities: Float[Tensor, "queries gallery"],
    relevant: Int[Tensor, " queries"] | Bool[Tensor, "queries gallery"] | None = None,
) -> Int[Tensor, " queries"]:
    """Rank, from 1, of each query's best relevant item; of equally similar items the irrelevant come first,
    so that similarities which say nothing win nothing.

    relevant: the one item that matches each query, or a mask of all that do; item i matches query i without.

    Raises: ValueError for similarities that are not (queries, gallery), NaN, items out of range, or a query
    without a relevant item.
    """
    s = check_logits(similarities, "similarities")
    if relevant is None:
        relevant = torch.arange(s.shape[0], device=s.device)
    if relevant.dtype != torch.bool:
        if relevant.shape != s.shape[:1] or bool((relevant < 0).any() | (relevant >= s.shape[1]).any()):
            raise ValueError(
                f"relevant must name one of {s.shape[1]} items for each of {s.shape[0]} queries, got"
                f" {tuple(relevant.shape)} from {int(relevant.amin())} to {int(relevant.amax())}."
            )
        relevant = torch.zeros_like(s, dtype=torch.bool).scatter(1, relevant[:, None], True)
    if relevant.shape != s.shape or not bool(relevant.any(dim=1).all()):
        raise ValueError(
            f"relevant must mark at least one of {s.shape[1]} items for each of {s.shape[0]} queries, got"
            f" {tuple(relevant.shape)}."
        )
    best = s.masked_fill(~relevant, -math.inf).amax(dim=1, keepdim=True)
    return 1 + ((s >= best) & ~relevant).sum(dim=1)


def recall_at(ranks: Int[Tensor, " queries"], k: int) -> float:
    """R@k: the share of queries whose best relevant item is among the first `k`."""
    return (ranks <= k).double().mean().item()


def k_occurrence(similarities: Float[Tensor, "queries gallery"], k: int = 10) -> Int[Tensor, " gallery"]:
    """For how many queries each gallery item is among the `k` most similar."""
    s = check_logits(similarities, "similarities")
    if not 1 <= k <= s.shape[1]:
        raise ValueError(f"k must lie between 1 and the {s.shape[1]} gallery items, got {k}.")
    return s.topk(k, dim=1).indices.flatten().bincount(minlength=s.shape[1])


def hubness_skew(similarities: Float[Tensor, "queries gallery"], k: int = 10) -> float:
    """Skewness of the k-occurrences of all gallery items: above 1 there are hubs, items similar to everything
    (Radovanovic, Nanopoulos, Ivanovic, JMLR 2010). 0 if all occur equally often."""
    return skewness(k_occurrence(similarities, k))


def skewness(x: Float[Tensor, " n"] | Int[Tensor, " n"]) -> float:
    """mean((x - mean)^3) / standard deviation^3; 0 if all are equal."""
    away = x.double() - x.double().mean()
    spread = away.square().mean().sqrt()
    return (away.pow(3).mean() / spread.pow(3)).item() if spread > 0 else 0.0
