"""Labels from votes by counting: the reference arm for crowdsourcing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_positive
from logitkit.registry import part
from logitkit.robust.dawid_skene import check_votes, vote_shares


@part(
    "majority",
    "robust",
    title="Majority vote",
    tasks=("crowd",),
    no_compile="it checks the values of the votes",
)
class Majority(nn.Module):
    """Labels from the votes of workers by counting them, every worker alike: what other ways of using votes
    are measured against.

    Equation: the probability of class k for item j is the share of the votes on j that are k.

    Shapes: `fit(votes)` with votes (items, workers) integer classes, -1 where there is none;
    `transform(votes)` -> shares (items, num_classes), equal ones for an item without votes; `predict(votes)`
    -> the most frequent class (items,), the lowest of equally frequent ones.

    Defaults: nothing to choose. `fit` learns how many workers there are, and nothing of them.

    Raises: ValueError for a number of classes that is not positive, votes of another shape or dtype, no
    items, a vote that is not a class, or use before `fit`.

    Source: common practice; the function is `vote_shares`.

    Not for: workers of different skill, of whom many good ones are outvoted by many bad ones (see
    `dawid_skene`, `toptwo`).
    """

    workers: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        self.num_classes = num_classes
        self.register_buffer("workers", torch.tensor(0))

    def fit(self, votes: Int[Tensor, "items workers"]) -> Majority:
        """Take the number of workers; returns self."""
        self.workers.fill_(check_votes(votes, self.num_classes).shape[1])
        return self

    def transform(self, votes: Int[Tensor, "items workers"]) -> Float[Tensor, "items classes"]:
        """The share of votes of each class."""
        workers = int(self.workers)
        if not workers:
            raise ValueError(f"majority must be fitted before it sees votes {tuple(votes.shape)}.")
        return vote_shares(check_votes(votes, self.num_classes, workers), self.num_classes)

    def predict(self, votes: Int[Tensor, "items workers"]) -> Int[Tensor, " items"]:
        """The most frequent class of each item."""
        return self.transform(votes).argmax(dim=1)
