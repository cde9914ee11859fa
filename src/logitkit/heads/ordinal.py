"""The ordinal head: one score and ordered cuts in place of a score per class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import (
    check_batch,
    check_features,
    check_labels,
    check_positive,
    check_reduction,
    log1mexp,
    reduce,
)
from logitkit.registry import part


def ordinal_log_softmax(
    score: Float[Tensor, " batch"], cuts: Float[Tensor, " cuts"]
) -> Float[Tensor, "batch classes"]:
    """log P(y = k) with P(y >= k) = sigmoid(score + cuts_k), k = 1..m; the cuts must fall.

    As sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), small classes keep their digits.
    """
    above = F.logsigmoid(score[:, None] + cuts)
    below = F.logsigmoid(-(score[:, None] + cuts))
    middle = above[:, :-1] + below[:, 1:] + log1mexp(cuts.diff())
    return torch.cat([below[:, :1], middle, above[:, -1:]], dim=1)


def ordinal_cross_entropy(
    log_p: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """-sum_{k=1..m} log P(y >= k if target >= k else y < k): a binary cross-entropy for every cut."""
    above = log_p.flip(-1).logcumsumexp(dim=-1).flip(-1)[:, 1:]
    below = log_p.logcumsumexp(dim=-1)[:, :-1]
    k = torch.arange(1, log_p.shape[1], device=log_p.device)
    return -torch.where(target[:, None] >= k, above, below).sum(dim=1)


def ranked_probability_score(
    probabilities: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Mean over cuts of (P(y <= k) - [target <= k])^2, in [0, 1], 0 for certainty of the right class."""
    target = check_labels(target, len(probabilities), probabilities.shape[1])
    k = torch.arange(probabilities.shape[1] - 1, device=probabilities.device)
    below = probabilities.cumsum(dim=1)[:, :-1]
    return (below - (target[:, None] <= k).to(below.dtype)).square().mean(dim=1)


@part(
    "ordinal",
    "heads",
    title="Constructing interval variables via faceted Rasch measurement and multitask deep learning",
    paper="arXiv:2009.10277",
    number=63,
    companion_of="faceted_rasch",
    replaces="linear",
    aliases=("coral",),
)
class OrdinalHead(nn.Module):
    """Scores of classes that have an order, such as ratings: one direction in feature space and a cut between
    neighbouring classes, so that far errors cost more and fewer weights are learned.

    Equation: P(y >= k) = sigmoid(w . x + c_k), c_1 > ... > c_m, m = classes - 1; logits_k = log P(y = k).
    Loss (ordinal cross-entropy) = -sum_k [y >= k] log P(y >= k) + [y < k] log P(y < k).

    Shapes: features (batch, in_features) -> logits (batch, num_classes), log-probabilities in at least
    float32. `loss(logits, target)` takes labels (batch,), whose numbers are the order, and returns nats.

    Defaults: cuts start where all classes are equally likely at w . x = 0. They are c_1 and the softplus of
    m - 1 learned gaps, so they stay in order; the authors' layer (CORAL) learns them freely, and their order
    is only sure at the optimum.

    Raises: ValueError for fewer than 2 classes, features of another shape or dtype, an empty batch, logits of
    another width, NaN, or labels out of range.

    Source: Kennedy, Bacon, Sahn, von Vacano, arXiv:2009.10277, the ordinal output layer; the loss from Cao,
    Mirjalili, Raschka, arXiv:1901.07884 (CORAL), equation 4.

    Not for: classes without an order, or whose order is not that of one underlying scale.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_positive(in_features=in_features)
        if not num_classes >= 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        self.in_features = in_features
        self.num_classes = num_classes
        self.weight = nn.Parameter(nn.Linear(in_features, 1, bias=False).weight.detach()[0])
        start = torch.logit(1 - torch.arange(1, num_classes) / num_classes)
        self.first = nn.Parameter(start[:1].clone())
        self.gaps = nn.Parameter((-start.diff()).expm1().log())  # the inverse of softplus

    @property
    def cuts(self) -> Float[Tensor, " cuts"]:
        """c_1 > ... > c_m, in at least float32."""
        dtype = torch.promote_types(self.first.dtype, torch.float32)
        falls = F.softplus(self.gaps.to(dtype)).cumsum(dim=0)
        return self.first.to(dtype) - torch.cat([falls.new_zeros(1), falls])

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        score = F.linear(check_features(features, self.in_features), self.weight[None])[:, 0]
        cuts = self.cuts
        return ordinal_log_softmax(score.to(torch.promote_types(score.dtype, cuts.dtype)), cuts)

    def loss(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], reduction: str = "mean"
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """The ordinal cross-entropy, in nats."""
        check_reduction(reduction)
        logits, target = check_batch(logits, target)
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must have {self.num_classes} columns, got shape {tuple(logits.shape)}.")
        return reduce(ordinal_cross_entropy(logits, target), reduction)


class MultitaskOrdinalHead(nn.Module):
    """An `OrdinalHead` for each of several items on the same features: predicts what judges would rate, for
    `FacetedRasch.measure` to turn into one value.

    Shapes: features (batch, in_features) -> log-probabilities (batch, items, num_classes); `loss(log_p,
    ratings)` takes levels (batch, items), -1 where there is no rating, and averages over the others, 0 if
    there are none; `expected(log_p)` -> mean levels (batch, items).

    Source: arXiv:2009.10277, the multitask network.
    """

    def __init__(self, in_features: int, items: int, num_classes: int) -> None:
        super().__init__()
        check_positive(items=items)
        self.heads = nn.ModuleList(OrdinalHead(in_features, num_classes) for _ in range(items))
        self.num_classes = num_classes

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch items classes"]:
        return torch.stack([head(features) for head in self.heads], dim=1)

    def loss(
        self, log_p: Float[Tensor, "batch items classes"], ratings: Int[Tensor, "batch items"]
    ) -> Float[Tensor, ""]:
        """The ordinal cross-entropy of the ratings there are, in nats."""
        if ratings.shape != log_p.shape[:2]:
            raise ValueError(f"ratings must have shape {tuple(log_p.shape[:2])}, got {tuple(ratings.shape)}.")
        flat = ratings.flatten()
        log_p, flat = check_batch(log_p.flatten(0, 1), flat, ignore_index=-1)
        losses = ordinal_cross_entropy(log_p, flat.clamp(min=0))
        return reduce(losses, "mean", (flat >= 0).to(losses.dtype))

    def expected(self, log_p: Float[Tensor, "batch items classes"]) -> Float[Tensor, "batch items"]:
        """The mean level of each item."""
        p = log_p.exp()
        return p @ torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)
