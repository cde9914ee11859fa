"""The ICNN loss: how well each point's nearest neighbours agree with its class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.contrast.proto_triplet import check_embeddings, distances
from logitkit.registry import Whole, part


def icnn_score(
    embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"], k: int = 4
) -> Float[Tensor, ""]:
    """The inter- and intra-class nearest neighbours score, in (0, 1], 1 for collapsed, separated classes; see
    `ICNNLoss`. 1 for fewer than 3 rows."""
    n = len(labels)
    if n < 3:
        return 0 * embeddings.sum() + 1
    itself = torch.eye(n, dtype=torch.bool, device=labels.device)
    distance, order = distances(embeddings, embeddings).masked_fill(itself, torch.inf).sort(dim=1)
    distance, order = distance[:, :-1], order[:, :-1]
    same = labels[:, None] == labels[order]
    size = (labels[:, None] == labels).sum(dim=1, keepdim=True)
    within = torch.arange(n - 1, device=labels.device) < size
    border = distance.masked_fill(same | ~within, torch.inf).amin(dim=1, keepdim=True)
    few = min(k, n - 2)
    distance, same = distance[:, :few], same[:, :few]

    near = distance / border
    near = near / near.amax(dim=1, keepdim=True).clamp(min=1)
    intra = _mean_of_means(near, same)
    far = torch.where(same, 0.0, distance)
    inter = _mean_of_means(far / far.amax().clamp(min=torch.finfo(far.dtype).tiny), ~same)
    inter = torch.where(same.all(), torch.ones_like(inter), inter)
    agree = same.to(distance.dtype).mean() if k + 2 < n else distance.new_ones(())
    return ((1 - intra + inter) / 2 + agree) / 2


def _mean_of_means(values: Float[Tensor, "n k"], kept: Tensor) -> Float[Tensor, ""]:
    """Mean over rows with any value kept of the mean of those; 0 if there is none."""
    count = kept.sum(dim=1)
    means = torch.where(kept, values, 0.0).sum(dim=1) / count.clamp(min=1)
    return means.sum() / (count > 0).sum().clamp(min=1)


@part(
    "icnn",
    "contrast",
    title="SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel"
    " distance-based loss functions for few-shot image classification",
    paper="arXiv:2305.09062",
    number=82,
    companion_of="proto_triplet",
    search_space={"k": Whole(2, 10)},
)
class ICNNLoss(nn.Module):
    """A loss on the neighbourhood of each embedding: neighbours of its class near, others far, and many of
    its class among the nearest. For few-shot learning beside the prototypical loss.

    Equation: loss = -log((lambda + gamma) / 2), lambda = (1 - intra + inter) / 2, over the k nearest
    neighbours of each point. intra is the mean distance to those of its class, relative to the nearest of
    another class among as many neighbours as the class has rows (0 if there is none), and scaled so that no
    neighbour exceeds 1; inter the mean distance to those of other classes, relative to the largest such in
    the batch (1 if there are none); both averaged over the points that have such neighbours. gamma is the
    share of neighbours of the same class, which has no gradient.

    Shapes: embeddings (batch, d), labels (batch,) any whole numbers of at least 0; returns a scalar that
    depends on the whole batch, 0 for fewer than 3 rows. Distances are sqrt(|x - y|^2 + 1e-6).

    Defaults: k = 4, as the authors' code; with fewer than k + 2 other rows k shrinks to the rows minus 2, and
    gamma counts as 1.

    Raises: ValueError for a k below 1, wrong shapes or dtypes, NaN, or an empty batch.

    Source: Mendez-Ruiz et al., arXiv:2305.09062, the section on the ICNN loss, in the form of the authors'
    code (github.com/maumruiz/FSL-Loss, `modified_score` on supports and queries together), which drops the
    variance term omega of the score and averages lambda and gamma.

    Not for: batches with one row per class; classes of several clusters that should stay apart.
    """

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        if not (isinstance(k, int) and k >= 1):
            raise ValueError(f"k must be a whole number of at least 1, got {k!r}.")
        self.k = k

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        x, labels = check_embeddings(embeddings, labels)
        return -icnn_score(x, labels, self.k).clamp(min=1e-6).log()
