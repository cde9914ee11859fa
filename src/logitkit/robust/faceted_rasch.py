"""Labels from votes on ordered levels, by Rasch measurement: what was rated, freed of who rated it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_positive
from logitkit.ops.fitted import Fitted
from logitkit.ops.rasch import fit_rasch, measure, rating_log_probabilities
from logitkit.registry import part
from logitkit.robust.dawid_skene import MISSING, check_votes


@part(
    "faceted_rasch",
    "robust",
    title="Constructing interval variables via faceted Rasch measurement and multitask deep learning",
    paper="arXiv:2009.10277",
    number=63,
    companion_of="faceted_rasch",
    replaces="majority",
    tasks=("crowd",),
    no_compile="it checks the values of the votes",
)
class RaschVotes(Fitted):
    """Labels from votes on classes that are levels of one scale, where some workers are strict and others
    lenient: every row is measured on the scale, at which a strict worker's low vote counts for more.

    Equation: log P(vote = k) / P(vote = k - 1) = theta_j - alpha_i - tau_k, k = 1..m, for row j and worker i;
    mean alpha = 0, sum tau = 0. `fit` keeps the severities alpha and the steps tau of
    `theory.FacetedRasch` with one item. theta of any row is then the most likely under the prior
    N(0, prior_variance), and its probabilities are those of a worker of mean severity, alpha = 0.

    Shapes: `fit(votes)` with votes (items, workers) integer levels, -1 where there is none;
    `transform(votes)` -> probabilities (items, num_classes); `predict(votes)` -> the median level (items,),
    the fewest levels away on average; `measure(votes)` -> theta (items,) in float64, 0 without votes. Other
    items may be judged than were fitted, but the workers must be the same.

    Defaults: prior variance 10, weak, and not tuned: validation labels are made with it, and the smaller it
    is the more alike they are. infit_bounds: with (0.5, 1.5), a common rule, workers
    whose infit lies outside are left out, and so are their votes later; None keeps all.

    Raises: ValueError for fewer than 2 classes, a prior variance that is not positive and finite, bounds that
    do not enclose 1, votes of another shape or dtype, no items, a vote that is not a level, items and workers
    in groups that no vote links, or use before `fit`.

    Source: Kennedy, Bacon, Sahn, von Vacano, arXiv:2009.10277, the section on the measurement model.

    Not for: classes without an order (see `dawid_skene`, `toptwo`), or workers of one severity, for whom a
    mean of votes does as well.
    """

    alpha: Tensor
    tau: Tensor

    def __init__(
        self,
        num_classes: int,
        prior_variance: float = 10.0,
        infit_bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not num_classes >= 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        check_positive(prior_variance=prior_variance)
        if math.isinf(prior_variance):
            raise ValueError(f"prior_variance must be finite, got {prior_variance}.")
        if infit_bounds is not None and not 0 <= infit_bounds[0] < 1 < infit_bounds[1]:
            raise ValueError(f"infit_bounds must enclose 1, got {infit_bounds}.")
        self.num_classes = num_classes
        self.prior_variance = prior_variance
        self.infit_bounds = infit_bounds
        self.register_buffer("alpha", torch.empty(0, dtype=torch.float64))
        self.register_buffer("tau", torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, votes: Int[Tensor, "items workers"]) -> RaschVotes:
        """Estimate every worker's severity, NaN for one who never voted, and the steps; returns self."""
        votes = check_votes(votes, self.num_classes)
        item, worker = (votes != MISSING).cpu().nonzero().T
        if not len(item):
            raise ValueError(f"there are no votes in {len(votes)} items.")
        ratings = torch.stack([item, torch.zeros_like(item), worker, votes.cpu()[item, worker]], dim=1)
        found = fit_rasch(ratings, self.num_classes, self.prior_variance, self.infit_bounds)
        alpha = torch.full((votes.shape[1],), torch.nan, dtype=torch.float64)
        alpha[: len(found.alpha)] = found.alpha
        self.alpha, self.tau = alpha.to(votes.device), found.tau[0].to(votes.device)
        return self

    @torch.no_grad()
    def measure(self, votes: Int[Tensor, "items workers"]) -> Float[Tensor, " items"]:
        """theta, from the votes of workers whose severity is known."""
        if not self.alpha.numel():
            raise ValueError(f"faceted_rasch must be fitted before it sees votes {tuple(votes.shape)}.")
        votes = check_votes(votes, self.num_classes, len(self.alpha))
        given = (votes != MISSING) & ~self.alpha.isnan()
        observed = torch.where(given, votes, 0).sum(dim=1).double()
        steps = self.tau.expand(len(self.alpha), -1)
        return measure(observed, self.alpha.nan_to_num(), steps, given.double(), self.prior_variance)

    def transform(self, votes: Int[Tensor, "items workers"]) -> Float[Tensor, "items classes"]:
        """The probability of each level, for a worker of mean severity."""
        theta = self.measure(votes)
        return rating_log_probabilities(theta, self.tau.expand(len(theta), -1)).exp().float()

    def predict(self, votes: Int[Tensor, "items workers"]) -> Int[Tensor, " items"]:
        """The median level of each item."""
        below = self.transform(votes).double().cumsum(dim=1)
        return (below < 0.5).sum(dim=1).clamp(max=self.num_classes - 1)
