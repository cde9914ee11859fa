"""A retriever and a ranker that learn from each other: what the one finds, and what either is trained on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.checks import check_logits


def mine_negatives(
    queries: Float[Tensor, "queries d"],
    documents: Float[Tensor, "documents d"],
    positives: Int[Tensor, " queries"],
    k: int,
    block: int = 1024,
) -> Int[Tensor, "queries k"]:
    """The k documents of the largest dot product with each query, but for its positive; `block` queries at a
    time. Raises ValueError unless 0 < k < documents."""
    if not 0 < k < len(documents):
        raise ValueError(f"k must lie between 1 and {len(documents) - 1}, got {k}.")
    found = []
    for q, positive in zip(queries.split(block), positives.split(block), strict=True):
        scores = (q @ documents.T).scatter(1, positive[:, None], -torch.inf)
        found.append(scores.topk(k, dim=1).indices)
    return torch.cat(found)


def ranker_loss(ranker_scores: Float[Tensor, "batch candidates"]) -> Float[Tensor, ""]:
    """Cross-entropy of the ranker's scores with the positive, candidate 0, as the class."""
    scores = check_logits(ranker_scores, "ranker_scores")
    return -F.log_softmax(scores, dim=1)[:, 0].mean()


def retriever_loss(
    scores: Float[Tensor, "batch candidates"],
    ranker_scores: Float[Tensor, "batch candidates"],
    lam: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Each row's l of `contrast.AR2Loss`: lam sum_j log sigmoid(r_0 - r_j) log p_j - (1 - lam) sum_j
    softmax(r / T)_j log p_j, p = softmax(scores), the positive being candidate 0. No gradient passes r."""
    s = check_logits(scores, "scores")
    r = check_logits(ranker_scores, "ranker_scores", classes=s.shape[1]).detach()
    if len(r) != len(s):
        raise ValueError(f"ranker_scores must have {len(s)} rows as the scores, got {len(r)}.")
    log_p = F.log_softmax(s, dim=1)
    reward = F.logsigmoid(r[:, :1] - r)
    belief = torch.softmax(r / temperature, dim=1)
    return lam * (reward * log_p).sum(dim=1) - (1 - lam) * (belief * log_p).sum(dim=1)
