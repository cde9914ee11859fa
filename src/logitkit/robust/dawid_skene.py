"""Labels from votes by counting, and by Dawid and Skene's model: reference arms for crowdsourcing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import part

MISSING = -1


def check_votes(votes: Tensor, num_classes: int, workers: int | None = None) -> Int[Tensor, "items workers"]:
    """Votes as int64. Raises ValueError for another shape or dtype, no items, or a vote that is neither a
    class nor -1."""
    if votes.ndim != 2 or not votes.numel() or (workers is not None and votes.shape[1] != workers):
        expected = "workers" if workers is None else workers
        raise ValueError(
            f"votes must have shape (items, {expected}) with at least one item, got {tuple(votes.shape)}."
        )
    if votes.is_floating_point() or votes.is_complex() or votes.dtype == torch.bool:
        raise ValueError(f"votes must hold integer classes, got {votes.dtype}.")
    low, high = votes.aminmax()
    if low < MISSING or high >= num_classes:
        raise ValueError(
            f"votes hold {int(low if low < MISSING else high)}; expected classes in [0, {num_classes}) or"
            f" {MISSING} where a worker did not answer."
        )
    return votes.long()


def answered(votes: Int[Tensor, "items workers"], num_classes: int) -> Float[Tensor, "items workers classes"]:
    """1 at the class that each worker gave, all 0 where there is none, in float64."""
    return (votes[..., None] == torch.arange(num_classes, device=votes.device)).double()


def vote_shares(votes: Int[Tensor, "items workers"], num_classes: int) -> Float[Tensor, "items classes"]:
    """Majority voting: the share of each item's votes that each class got; equal shares without votes."""
    counts = answered(check_votes(votes, num_classes), num_classes).sum(dim=1)
    total = counts.sum(dim=1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), 1 / num_classes).float()


@part(
    "dawid_skene",
    "robust",
    title="Dawid-Skene aggregation of votes",
    tasks=("crowd",),
    no_compile="it checks the values of the votes",
)
class DawidSkene(Fitted):
    """Labels from the votes of workers who confuse classes in their own ways, by maximum likelihood: the
    reference for crowdsourcing beyond counting votes (`vote_shares`).

    Equation: P(votes of item j) = sum_k pi_k prod_i C_i[k, vote_ij] over the workers i who answered; pi and
    the confusion matrices C_i by EM from the shares of votes.

    Shapes: `fit(votes)` with votes (items, workers) integer classes, -1 where there is none;
    `transform(votes)` -> the posterior (items, num_classes); `predict(votes)` -> the likeliest class
    (items,). Other items may be judged than were fitted, but the workers must be the same.

    Defaults: 100 steps of EM; one vote is added in all to every row of C_i, spread evenly over the classes,
    which a worker who never saw the class needs.

    Raises: ValueError for steps or a number of classes that are not positive, votes of another shape or
    dtype, no items, a vote that is not a class, or use before `fit`.

    Source: Dawid, Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm",
    Applied Statistics 28, 1979, equations 2.3 to 2.5.

    Not for: workers with only a few votes each, whose matrices it cannot estimate.
    """

    log_prior: Tensor
    log_confusion: Tensor

    def __init__(self, num_classes: int, steps: int = 100) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, steps=steps)
        self.num_classes = num_classes
        self.steps = steps
        self.register_buffer("log_prior", torch.empty(0, dtype=torch.float64))
        self.register_buffer("log_confusion", torch.empty(0, 0, 0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, votes: Int[Tensor, "items workers"]) -> DawidSkene:
        """Estimate class frequencies and every worker's confusion matrix; returns self."""
        posterior = vote_shares(votes, self.num_classes).double()
        given = answered(votes, self.num_classes)
        for _ in range(self.steps):
            self.log_prior = posterior.mean(dim=0).log()
            counts = torch.einsum("jk,jil->ikl", posterior, given) + 1 / self.num_classes
            self.log_confusion = (counts / counts.sum(dim=-1, keepdim=True)).log()
            posterior = self._posterior(given)
        return self

    def transform(self, votes: Int[Tensor, "items workers"]) -> Float[Tensor, "items classes"]:
        """The probability of each class."""
        if not self.log_prior.numel():
            raise ValueError(f"dawid_skene must be fitted before it sees votes {tuple(votes.shape)}.")
        votes = check_votes(votes, self.num_classes, len(self.log_confusion))
        return self._posterior(answered(votes, self.num_classes)).float()

    def predict(self, votes: Int[Tensor, "items workers"]) -> Int[Tensor, " items"]:
        """The likeliest class of each item."""
        return self.transform(votes).argmax(dim=1)

    def _posterior(self, given: Tensor) -> Float[Tensor, "items classes"]:
        return torch.softmax(self.log_prior + torch.einsum("jil,ikl->jk", given, self.log_confusion), dim=1)
