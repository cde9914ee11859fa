"""Triplets with online hard negatives: each example against the hardest labels that its batch holds."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.ops import Labels, check_multilabel, check_positive, check_reduction, reduce
from logitkit.registry import Choice, Real, Whole, part

TEMPERATURE = 0.1  # of the weights of the soft variant


def triplet_ohnm(
    similarity: Float[Tensor, "batch batch"],
    positive: Bool[Tensor, "batch batch"],
    margin: float = 0.3,
    k: int = 10,
    soft: bool = False,
) -> Float[Tensor, " batch"]:
    """Per example i, with column i its own label, over its k most similar labels j that are not `positive`:
    mean_j [s_ij - s_ii + margin]_+, or with `soft` the mean weighted by softmax_j(s_ij / 0.1) over those
    above 0. An example without a negative has 0."""
    lowest = torch.finfo(similarity.dtype).min
    negatives = similarity.masked_fill(positive, lowest).topk(min(k, similarity.shape[1]), dim=1).values
    real = negatives > lowest
    own = similarity.diagonal()[:, None]
    loss = (negatives - own + margin).clamp(min=0).where(real, 0.0)
    if not soft:
        return loss.sum(dim=1) / real.sum(dim=1).clamp(min=1)
    weight = torch.softmax((negatives / TEMPERATURE).masked_fill(loss == 0, lowest), dim=1)
    return (weight * loss).sum(dim=1)


@part(
    "triplet_ohnm",
    "contrast",
    title="NGAME: Negative Mining-aware Mini-batching for Extreme Classification: the loss",
    paper="arXiv:2207.04452",
    number=40,
    companion_of="ngame",
    replaces="multi_positive",
    tasks=("multilabel",),
    search_space={"margin": Real(0.05, 1.0, log=True), "k": Whole(1, 30), "soft": Choice(False, True)},
    no_gradcheck="a positive label is drawn anew in every call",
)
class TripletOHNM(nn.Module):
    """Triplets with online hard negative mining: very many labels of which a step may see only those of its
    batch. Meant for batches of similar examples (`algorithm=ngame`), whose labels are each other's negatives.

    Equation: l_i = 1/k sum_j [s_ij - s_{i p(i)} + margin]_+, p(i) a relevant label of example i drawn at
    random, j the k most similar of the labels p(1), ..., p(batch) that are not relevant to i. With `soft` the
    mean is weighted by softmax_j(s_ij / 0.1) over the j above 0.

    Shapes: scores (batch, labels), meant to be cosines, target a mask (batch, labels) of bool or 0 and 1, or
    whole-number lists (batch, most) filled up with -1; returns a scalar, or (batch,) with `reduction="none"`.
    Rows without a relevant label count nothing. `triplet_ohnm` takes the (batch, batch) similarities of
    examples and their labels, where labels have an encoder of their own.

    Defaults: margin 0.3 and k = 10, as in the authors' runs; not soft.

    Raises: ValueError for a margin that is not positive, k below 1, wrong shapes or dtypes, NaN scores,
    labels out of range, an empty batch.

    Source: Dahiya et al., WSDM 2023, arXiv:2207.04452, section 3, and the authors' code. With `soft` theirs
    is 1/k of ours and leaves those at 0 in the softmax, with weight e^0; with fewer than k negatives it takes
    relevant labels for the missing ones.

    Not for: a few thousand labels, which a softmax can see all at once.
    """

    def __init__(
        self, margin: float = 0.3, k: int = 10, soft: bool = False, *, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_positive(margin=margin, k=k)
        check_reduction(reduction)
        self.margin, self.k, self.soft, self.reduction = margin, k, soft, reduction

    def forward(
        self, scores: Float[Tensor, "batch labels"], target: Labels
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        scores, relevant = check_multilabel(scores, target)
        some = relevant.any(dim=1)
        # The largest of random numbers over the relevant labels is a fair draw of one of them.
        drawn = torch.rand(relevant.shape, device=scores.device).masked_fill(~relevant, -1.0).argmax(dim=1)
        similarity = scores[:, drawn]
        # What a row without relevant labels drew is nobody's negative.
        positive = relevant[:, drawn] | ~some
        loss = triplet_ohnm(similarity, positive, self.margin, self.k, self.soft)
        return reduce(loss, self.reduction, some.to(loss.dtype))
