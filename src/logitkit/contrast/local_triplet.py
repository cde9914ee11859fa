"""Local triplets: matched places of two images of one class must be nearer than places of other classes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_numbers, check_positive, check_reduction, reduce
from logitkit.ops.sphere import cosine, unit
from logitkit.registry import Real, Whole, part


def match_local(
    query: Float[Tensor, "batch places d"],
    positive: Float[Tensor, "batch places d"],
    attention: Float[Tensor, "batch places"],
    ratio: float = 0.9,
) -> tuple[Int[Tensor, "batch places"], Bool[Tensor, "batch places"]]:
    """For each place of `positive` the nearest place of `query`, and whether the two are a match.

    A match is mutually nearest, at most `ratio` times as far (in Euclidean distance of unit descriptors) as
    the second nearest place of `query`, and in the half of the places of `positive` with most `attention`.
    """
    similarity = unit(query) @ unit(positive).mT
    values, places = similarity.topk(2, dim=1)
    best, second, nearest = values[:, 0], values[:, 1], places[:, 0]
    back = similarity.argmax(dim=2).gather(1, nearest)
    mutual = back == torch.arange(similarity.shape[2], device=similarity.device)
    clear = (1 - best <= ratio**2 * (1 - second)) & (second < best)
    half = attention.topk(attention.shape[1] // 2).indices
    seen = torch.zeros_like(mutual).scatter(1, half, torch.ones_like(half, dtype=torch.bool))
    return nearest, mutual & clear & seen


def hard_tuples(
    embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"], negatives: int = 6
) -> tuple[
    Int[Tensor, " batch"],
    Bool[Tensor, " batch"],
    Int[Tensor, "batch negatives"],
    Bool[Tensor, "batch negatives"],
]:
    """A positive and hard negatives for each row of a batch, and which of them exist.

    The positive is the next row of the same class, counted in a circle; the negatives are the `negatives`
    rows of other classes (or as many rows as there are) with the most similar embeddings.
    """
    n = len(labels)
    same = labels[:, None] == labels
    row = torch.arange(n, device=labels.device)
    ahead = (row - row[:, None]) % n
    positive = ahead.masked_fill(~same | (ahead == 0), n).argmin(dim=1)
    similarity = cosine(embeddings.detach(), embeddings.detach()).masked_fill(same, -torch.inf)
    found = similarity.topk(min(negatives, n)).indices
    return positive, same.sum(dim=1) > 1, found, ~same.gather(1, found)


def local_triplet(
    query: Float[Tensor, "batch places d"],
    positive: Float[Tensor, "batch places d"],
    negatives: Float[Tensor, "batch negatives places d"],
    attention: Float[Tensor, "batch places"],
    exists: Bool[Tensor, "batch negatives"] | None = None,
    margin: float = 0.1,
    ratio: float = 0.9,
) -> Float[Tensor, " batch"]:
    """Sum over matched places and negatives of [|q - p|^2 - |q - n|^2 + margin]_+; see `LocalTripletLoss`.

    attention: (batch, places) of the positive. exists: which negatives count, all of them without it.
    """
    query, positive, negatives = unit(query), unit(positive), unit(negatives)
    nearest, matched = match_local(query.detach(), positive.detach(), attention, ratio)
    q = query.take_along_dim(nearest[..., None], dim=1)
    place = (negatives.detach() @ q.detach()[:, None].mT).argmax(dim=2)
    n = negatives.take_along_dim(place[..., None], dim=2)
    # |q - p|^2 - |q - n|^2 = 2 <q, n> - 2 <q, p> for unit vectors
    further = 2 * (q[:, None] * n).sum(-1) - 2 * (q * positive).sum(-1)[:, None]
    kept = matched[:, None] if exists is None else matched[:, None] & exists[..., None]
    return ((further + margin).clamp(min=0) * kept).sum(dim=(1, 2))


@part(
    "local_triplet",
    "contrast",
    title="Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval",
    paper="arXiv:2308.04008",
    number=17,
    companion_of="madacos",
    needs=("features",),
    search_space={"margin": Real(0.02, 0.5, log=True), "negatives": Whole(1, 12)},
)
class LocalTripletLoss(nn.Module):
    """The fine stage of coarse-to-fine retrieval: added to a classification loss it makes the places that two
    images of one class share alike, and unlike the nearest places of images that look similar.

    Equation: for an image, a positive and its hard negatives, loss = sum over matched places (q, p) and
    negatives of [|q - p|^2 - |q - n|^2 + margin]_+, with unit descriptors of the feature map and n the place
    of the negative nearest to q. Places match if they are mutually nearest, pass the ratio test and lie in
    the half of the positive with the largest sum_channels |f| (see `match_local`).

    Shapes: embeddings (batch, d) choose the hard negatives, labels (batch,) integers, features
    (batch, channels, *positions) with at least 2 positions; returns the mean over the images that have a
    positive in the batch, 0 if none has, or (batch,) with `reduction="none"`.

    Defaults: margin 0.1, ratio 0.9 and 6 negatives, the paper's; its weight beside cross-entropy is 0.05
    (`regularize=0.05*local_triplet`).

    Raises: ValueError for a margin or ratio that is not positive, fewer than 1 negative, wrong shapes or
    dtypes, NaN features, or an empty batch.

    Source: Zhu, Yang, Wang, Tan, Fang, ICCV 2023, arXiv:2308.04008, section 3.3, and the authors' code. They
    draw tuples from the data by confused classes, here every row of the batch makes one with rows of the
    batch; they add the tuples' losses up.

    Not for: batches in which most classes appear once; feature maps of a few places.
    """

    def __init__(
        self, margin: float = 0.1, ratio: float = 0.9, negatives: int = 6, *, reduction: str = "mean"
    ) -> None:
        super().__init__()
        check_positive(margin=margin, ratio=ratio)
        if not (isinstance(negatives, int) and negatives >= 1):
            raise ValueError(f"negatives must be a whole number of at least 1, got {negatives!r}.")
        check_reduction(reduction)
        self.margin = margin
        self.ratio = ratio
        self.negatives = negatives
        self.reduction = reduction

    def forward(
        self,
        embeddings: Float[Tensor, "batch d"],
        labels: Int[Tensor, " batch"],
        features: Float[Tensor, "batch channels *positions"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        embeddings = check_features(embeddings)
        labels = check_labels(labels, len(embeddings), torch.iinfo(torch.int64).max)
        _check_map(features, len(embeddings))
        places = features.flatten(2).mT
        attention = features.detach().abs().flatten(2).sum(dim=1)
        positive, has_positive, negatives, exists = hard_tuples(embeddings, labels, self.negatives)
        losses = local_triplet(
            places, places[positive], places[negatives], attention[positive], exists, self.margin, self.ratio
        )
        return reduce(losses, self.reduction, has_positive.to(losses.dtype))


def _check_map(features: Tensor, batch: int) -> None:
    if features.ndim < 3 or features.shape[0] != batch or features.shape[2:].numel() < 2:
        raise ValueError(
            f"features must have shape ({batch}, channels, positions), at least 2 positions, got"
            f" {tuple(features.shape)}."
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}.")
    check_numbers(features, "x")
