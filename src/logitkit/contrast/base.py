"""The slot: objectives on embeddings, `loss(embeddings, labels)`; or, with several relevant labels among
many, on scores, `loss(scores, target)`."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.ops import Labels, check_multilabel, check_reduction, reduce

__all__ = ["RankingLoss"]


class RankingLoss(nn.Module):
    """Base of losses that average a term per relevant label: subclasses define `terms`.

    Each row counts the mean over its relevant labels, rows without any count nothing.
    weight: how much each label's term counts in its row, (labels,); None for all the same.
    """

    weight: Tensor | None

    def __init__(self, *, reduction: str = "mean", weight: Float[Tensor, " labels"] | None = None) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction
        self.register_buffer("weight", weight)

    def terms(
        self, scores: Float[Tensor, "batch labels"], positive: Bool[Tensor, "batch labels"]
    ) -> Float[Tensor, "batch labels"]:
        """The term of each label, of which the relevant ones are used."""
        raise NotImplementedError

    def forward(
        self, scores: Float[Tensor, "batch labels"], target: Labels
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        scores, positive = check_multilabel(scores, target)
        share = positive.to(scores.dtype)
        if self.weight is not None:
            share = share * self.weight.to(scores)
        total = share.sum(dim=1)
        share = share / total.clamp(min=torch.finfo(share.dtype).tiny)[:, None]
        terms = self.terms(scores, positive).where(positive, scores.new_zeros(()))
        return reduce((share * terms).sum(dim=1), self.reduction, (total > 0).to(scores.dtype))
