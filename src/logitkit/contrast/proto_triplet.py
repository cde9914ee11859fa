"""The proto-triplet loss for few-shot learning: queries nearer to their own prototype than to any other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.utils.data import Sampler

from logitkit.ops import check_features, check_labels, check_numbers, check_positive, check_reduction, reduce
from logitkit.registry import Real, Whole, part

# Under square roots, so that distances of 0 have a slope.
TINY = 1e-6


def distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """sqrt(|x_i - y_j|^2 + 1e-6), in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    plain = torch.cdist(x.to(dtype), y.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")
    return (plain.square() + TINY).sqrt()


def prototypes(
    embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"], shots: int = 1
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """The prototype of each row's class, the mean of the first `shots` rows of the class in the batch, and
    which rows are not among those but queries."""
    same = labels[:, None] == labels
    query = same.tril(-1).sum(dim=1) >= shots
    share = (same & ~query).to(embeddings.dtype)
    return (share / share.sum(dim=1, keepdim=True)) @ embeddings, query


def episode_accuracy(
    embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"], shots: int = 1
) -> float:
    """Share of the queries whose nearest prototype is that of their class, in percent."""
    centres, query = prototypes(embeddings, labels, shots)
    nearest = distances(embeddings[query], centres[~query]).argmin(dim=1)
    return 100 * (labels[~query][nearest] == labels[query]).double().mean().item()


class EpisodeSampler(Sampler[list[int]]):
    """Batches that are few-shot tasks: `ways` random classes with `shots` + `queries` rows each.

    The first ways x shots rows are the supports, class by class, then come the queries in the same order. A
    batch sampler for `torch.utils.data.DataLoader`; every pass draws `episodes` new tasks.
    """

    def __init__(
        self,
        labels: Int[Tensor, " n"],
        ways: int,
        shots: int,
        queries: int,
        episodes: int,
        generator: Generator | None = None,
    ) -> None:
        self.shots, self.ways, self.episodes, self.generator = shots, ways, episodes, generator
        self.rows = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
        self.size = shots + queries
        self.rows = [rows for rows in self.rows if len(rows) >= self.size]
        if not 2 <= ways <= len(self.rows):
            raise ValueError(
                f"ways must lie in [2, {len(self.rows)}], the number of classes with at least"
                f" {self.size} rows, got {ways}."
            )

    def __len__(self) -> int:
        return self.episodes

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.episodes):
            classes = torch.randperm(len(self.rows), generator=self.generator)[: self.ways]
            drawn = torch.stack([self._draw(int(c)) for c in classes])
            yield torch.cat([drawn[:, : self.shots].flatten(), drawn[:, self.shots :].flatten()]).tolist()

    def _draw(self, c: int) -> Int[Tensor, " size"]:
        rows = self.rows[c]
        return rows[torch.randperm(len(rows), generator=self.generator)[: self.size]]


@part(
    "proto_triplet",
    "contrast",
    title="SuSana Distancia is all you need: Enforcing class separability in metric learning via two novel"
    " distance-based loss functions for few-shot image classification",
    paper="arXiv:2305.09062",
    number=82,
    aliases=("susana",),
    search_space={"margin": Real(0.1, 2.0, log=True), "shots": Whole(1, 5)},
)
class ProtoTripletLoss(nn.Module):
    """A triplet loss of class prototypes: beside the prototypical loss, or alone, it makes few-shot classes
    leave a margin between them.

    Equation: loss = mean over queries x of [|x - P_y| - min_{c != y} |x - P_c| + margin]_+, P_c the mean of
    the support embeddings of class c; |v| stands for sqrt(|v|^2 + 1e-6).

    Shapes: embeddings (batch, d), labels (batch,) any whole numbers of at least 0; the first `shots` rows
    of each class in the batch are its support, the others its queries. Returns a scalar, 0 without queries
    or with a single class, or (batch,) with `reduction="none"`, 0 for the supports.

    Defaults: margin 0.5, as the authors' code; shots = 1. Their total is the mean of this and the
    prototypical cross-entropy, or of these and `icnn`.

    Raises: ValueError for a margin that is not positive, fewer than 1 shot, wrong shapes or dtypes, NaN, or
    an empty batch.

    Source: Mendez-Ruiz et al., arXiv:2305.09062, the section on the Proto-Triplet Loss, and the authors' code
    (github.com/maumruiz/FSL-Loss): anchors are queries, and the hardest prototype is the negative.

    Not for: batches in which hardly any class has more than `shots` rows (`EpisodeSampler` makes others).
    """

    def __init__(self, margin: float = 0.5, shots: int = 1, *, reduction: str = "mean") -> None:
        super().__init__()
        check_positive(margin=margin)
        if not (isinstance(shots, int) and shots >= 1):
            raise ValueError(f"shots must be a whole number of at least 1, got {shots!r}.")
        check_reduction(reduction)
        self.margin = margin
        self.shots = shots
        self.reduction = reduction

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        x, labels = check_embeddings(embeddings, labels)
        centres, query = prototypes(x, labels, self.shots)
        apart = distances(x, centres)
        nearest = apart.masked_fill(labels[:, None] == labels, torch.inf).amin(dim=1)
        losses = (apart.diagonal() - nearest + self.margin).clamp(min=0)
        return reduce(losses, self.reduction, query.to(losses.dtype))


def check_embeddings(
    embeddings: Tensor, labels: Tensor
) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"]]:
    """Embeddings in at least float32, none NaN, and as many labels."""
    x = check_features(embeddings)
    labels = check_labels(labels, len(x), torch.iinfo(torch.int64).max)
    check_numbers(x, "embeddings")
    return x.to(torch.promote_types(x.dtype, torch.float32)), labels
