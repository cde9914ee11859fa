"""The slot: objectives on embeddings, `loss(embeddings, labels)`; with several relevant labels among many, on
scores, `loss(scores, target)`; of several views of each example, `loss(views, labels=None)`, which looks at
no label and says in its attribute `views` how many it wants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.ops import Labels, check_multilabel, check_numbers, check_reduction, reduce

__all__ = ["RankingLoss", "check_views"]


def check_views(views: Tensor | Sequence[Tensor], count: int | None = None) -> Float[Tensor, "views batch d"]:
    """Return `views`, stacked if they are several tensors of one shape.

    Raises ValueError for another shape than (views, batch, d) with `count` views, or at least two, for a
    dtype that is not floating point, an empty batch, or NaN.
    """
    if not isinstance(views, Tensor):
        shapes = {tuple(view.shape) for view in views}
        if len(shapes) != 1:
            raise ValueError(f"views must have one shape, got {len(shapes)}: {sorted(shapes)}.")
        views = torch.stack(list(views))
    many = str(count) if count else "at least 2"
    if views.ndim != 3 or views.numel() == 0 or not (len(views) == count if count else len(views) > 1):
        raise ValueError(f"views must have shape ({many}, batch, d), not empty, got {tuple(views.shape)}.")
    if not views.is_floating_point():
        raise ValueError(f"views must be floating point, got {views.dtype}.")
    check_numbers(views, "views")
    return views


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
