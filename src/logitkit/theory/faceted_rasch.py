"""Many-facet Rasch measurement: what was rated, on an interval scale, freed of who rated it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_positive, values_visible
from logitkit.ops.fitted import Fitted
from logitkit.ops.rasch import FACETS, fit_rasch, measure, rating_log_probabilities
from logitkit.registry import part


@part(
    "faceted_rasch",
    "theory",
    title="Constructing interval variables via faceted Rasch measurement and multitask deep learning",
    paper="arXiv:2009.10277",
    number=63,
    tasks=("crowd",),
)
class FacetedRasch(Fitted):
    """The many-facet partial-credit model: from ratings on several items by judges of different severity, the
    value of each subject, with its standard error, and which judges do not measure the same thing.

    Equation: log P(y = k) / P(y = k - 1) = theta_n - delta_i - alpha_j - tau_ik, k = 1..m, for subject n,
    item i and judge j; mean alpha = mean delta = 0 and sum_k tau_ik = 0. Fitted by joint maximum likelihood
    with the prior N(0, prior_variance) on every parameter. infit_j = sum residual^2 / sum variance over the
    ratings of judge j: 1 is expected, far more is noise, far less is too regular.

    Shapes: `fit(ratings)` takes whole numbers (rows, 4): subject, item, judge and level, each counted from
    0. Then `theta` (subjects,), `delta` (items,), `alpha` (judges,), `tau` (items, m) and `theta_se`,
    `delta_se`, `alpha_se` in logits, `infit` (judges,); NaN for what has no ratings. `predict(rows)` of
    (batch, 3) subject, item and judge gives expected levels (batch,), `probabilities(rows)` (batch,
    levels); `measure(scores)` the theta (batch,) of new subjects. All in float64.

    Defaults: prior variance 10, weak, which keeps subjects with only lowest or highest ratings finite
    (math.inf is none). levels: what the data show. infit_bounds: with (0.5, 1.5), a common rule, judges
    outside are left out and the model is fitted again; None keeps all.

    Raises: ValueError for ratings of another shape or dtype, negative ones, levels out of range, an empty
    table, facets that no rating links, without a prior facets with only extreme or missing levels, ids
    unknown to `fit`, or use before it.

    Source: Kennedy, Bacon, Sahn, von Vacano, arXiv:2009.10277, the section on the measurement model; the
    model is Linacre's, Many-Facet Rasch Measurement, 1989. Standard errors are those of one parameter with
    the others held. The paper's ordinal output layer is the head `ordinal`, its network's last layer
    `MultitaskOrdinalHead`, whose expected levels `measure` takes.

    Not for: unordered answers (see `dawid_skene`), or judges who each saw other subjects than all the rest.
    """

    theta: Tensor
    delta: Tensor
    alpha: Tensor
    tau: Tensor
    theta_se: Tensor
    delta_se: Tensor
    alpha_se: Tensor
    infit: Tensor

    def __init__(
        self,
        levels: int | None = None,
        prior_variance: float = 10.0,
        infit_bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if levels is not None and not levels >= 2:
            raise ValueError(f"levels must be at least 2, got {levels}.")
        check_positive(prior_variance=prior_variance)
        if infit_bounds is not None and not 0 <= infit_bounds[0] < 1 < infit_bounds[1]:
            raise ValueError(f"infit_bounds must enclose 1, got {infit_bounds}.")
        self.levels = levels
        self.prior_variance = prior_variance
        self.infit_bounds = infit_bounds
        for name in ("theta", "delta", "alpha", "theta_se", "delta_se", "alpha_se", "infit"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("tau", torch.empty(0, 0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, ratings: Int[Tensor, "rows 4"]) -> FacetedRasch:
        """Estimate every facet; returns self."""
        device = ratings.device
        ratings = _check_table(ratings, (*FACETS, "level")).cpu()
        levels = self.levels or max(int(ratings[:, 3].max()) + 1, 2)
        if int(ratings[:, 3].max()) >= levels:
            raise ValueError(
                f"ratings hold the level {int(ratings[:, 3].max())}; expected levels in [0, {levels})."
            )
        found = fit_rasch(ratings, levels, self.prior_variance, self.infit_bounds)
        for name, values in found._asdict().items():
            setattr(self, name, values)
        return self.to(device)

    @torch.no_grad()
    def measure(self, scores: Float[Tensor, "batch items"]) -> Float[Tensor, " batch"]:
        """theta of new subjects from a level on every item, by a judge of mean severity; the levels may be
        expected ones, such as a network's. Most likely under the prior, and NaN without one where all levels
        are the lowest or the highest."""
        items, steps = self.tau.shape
        if not items or scores.ndim != 2 or scores.shape[1] != items or not scores.is_floating_point():
            raise ValueError(
                f"scores must be floating point of shape (batch, {items}), a column for each fitted item; got"
                f" {scores.dtype} of shape {tuple(scores.shape)}."
            )
        if values_visible(scores) and not bool(((scores >= 0) & (scores <= steps)).all()):
            raise ValueError(f"scores must lie in [0, {steps}], the levels that were fitted.")
        observed = scores.double().sum(dim=1)
        given = torch.ones(scores.shape, dtype=torch.float64, device=scores.device)
        theta = measure(observed, self.delta, self.tau, given, self.prior_variance)
        unbounded = (observed == 0) | (observed == items * steps)
        return torch.where(unbounded & math.isinf(self.prior_variance), torch.nan, theta)

    def predict(self, rows: Int[Tensor, "batch 3"]) -> Float[Tensor, " batch"]:
        """The expected level of each subject, item and judge."""
        p = self.probabilities(rows)
        return p @ torch.arange(p.shape[1], dtype=p.dtype, device=p.device)

    def probabilities(self, rows: Int[Tensor, "batch 3"]) -> Float[Tensor, "batch levels"]:
        """P(y = 0..m) of each subject, item and judge."""
        rows = _check_table(rows, FACETS)
        known = (self.theta, self.delta, self.alpha)
        if not self.theta.numel():
            raise ValueError(f"faceted_rasch must be fitted before it sees rows {tuple(rows.shape)}.")
        if values_visible(rows):
            for name, column, values in zip(FACETS, rows.T, known, strict=True):
                if int(column.max()) >= len(values):
                    raise ValueError(f"there is no {name} {int(column.max())}; {len(values)} were fitted.")
        n, i, j = rows.T
        return rating_log_probabilities(self.theta[n] - self.delta[i] - self.alpha[j], self.tau[i]).exp()


def _check_table(rows: Tensor, columns: tuple[str, ...]) -> Int[Tensor, "rows columns"]:
    if rows.ndim != 2 or rows.shape[1] != len(columns) or rows.is_floating_point():
        raise ValueError(
            f"expected whole numbers (rows, {len(columns)}), {', '.join(columns)}; got {rows.dtype} of shape"
            f" {tuple(rows.shape)}."
        )
    if len(rows) == 0:
        raise ValueError(f"the table is empty, shape {tuple(rows.shape)}; expected at least one row.")
    if values_visible(rows) and int(rows.min()) < 0:
        raise ValueError(f"the table holds {int(rows.min())}; expected numbers counted from 0.")
    return rows.long()
