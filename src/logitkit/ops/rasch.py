"""Rasch measurement: the many-facet partial-credit model, and its joint maximum likelihood."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

FACETS = ("subject", "item", "judge")


def rating_log_probabilities(
    location: Float[Tensor, " rows"], steps: Float[Tensor, "rows steps"]
) -> Float[Tensor, "rows levels"]:
    """log P(y = 0..m) of the partial-credit model: log P(y = k) / P(y = k - 1) = location - steps_k."""
    rises = location[:, None] - steps
    return torch.log_softmax(torch.cat([torch.zeros_like(rises[:, :1]), rises.cumsum(dim=1)], dim=1), dim=1)


class Measured(NamedTuple):
    """What ratings say of every facet, in float64 and NaN for what has none: see `theory.FacetedRasch`."""

    theta: Float[Tensor, " subjects"]
    delta: Float[Tensor, " items"]
    alpha: Float[Tensor, " judges"]
    tau: Float[Tensor, "items steps"]
    theta_se: Float[Tensor, " subjects"]
    delta_se: Float[Tensor, " items"]
    alpha_se: Float[Tensor, " judges"]
    infit: Float[Tensor, " judges"]


def fit_rasch(
    ratings: Int[Tensor, "rows 4"],
    levels: int,
    prior_variance: float,
    infit_bounds: tuple[float, float] | None = None,
) -> Measured:
    """Estimate every facet from subject, item, judge and level of each rating, on the CPU.

    infit_bounds: judges whose infit lies outside are left out and the others measured again.

    Raises ValueError for facets that no rating links and, without a prior, for extreme or missing levels.
    """
    sizes = [int(column.max()) + 1 for column in ratings.T[:3]]
    found = _fit(ratings, sizes, levels, prior_variance)
    if infit_bounds is None:
        return found
    infit = found.infit[ratings[:, 2]]
    fits = (infit >= infit_bounds[0]) & (infit <= infit_bounds[1])
    if bool(fits.all()):
        return found
    return _fit(ratings[fits], sizes, levels, prior_variance)._replace(infit=found.infit)


def measure(
    observed: Float[Tensor, " batch"],
    difficulty: Float[Tensor, " n"],
    tau: Float[Tensor, "n steps"],
    given: Float[Tensor, "batch n"],
    prior_variance: float,
) -> Float[Tensor, " batch"]:
    """theta of new subjects: where the levels expected of the ratings that are `given` (0 or 1) sum to what
    was observed, less theta / prior_variance."""
    level = torch.arange(tau.shape[1] + 1, dtype=tau.dtype, device=tau.device)
    low, high = (torch.full_like(observed, bound) for bound in (-100.0, 100.0))
    for _ in range(60):
        theta = (low + high) / 2
        location = (theta[:, None] - difficulty).flatten()
        p = rating_log_probabilities(location, tau.repeat(len(theta), 1)).exp()
        expected = ((p @ level).view(given.shape) * given).sum(dim=1)
        below = expected + theta / prior_variance < observed
        low, high = torch.where(below, theta, low), torch.where(below, high, theta)
    return theta


def _fit(ratings: Tensor, sizes: list[int], levels: int, prior_variance: float) -> Measured:
    *facets, y = ratings.T
    present = [torch.bincount(f, minlength=size) > 0 for f, size in zip(facets, sizes, strict=True)]
    _check_links(facets)
    if math.isinf(prior_variance):
        _check_levels(facets, y, levels)
    steps = levels - 1
    counts = [*sizes, sizes[1] * steps]
    n, i, j = facets

    def parameters(flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta, delta, alpha, tau = flat.split(counts)
        tau = tau.view(sizes[1], steps)
        return (
            theta, _centred(delta, present[1]), _centred(alpha, present[2]),
            tau - tau.mean(dim=1, keepdim=True),
        )  # fmt: skip

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            flat = torch.from_numpy(values).requires_grad_()
            theta, delta, alpha, tau = found = parameters(flat)
            log_p = rating_log_probabilities(theta[n] - delta[i] - alpha[j], tau[i])
            loss = -log_p.gather(1, y[:, None]).sum()
            loss = loss + sum(each.square().sum() for each in found) / (2 * prior_variance)
            (slope,) = torch.autograd.grad(loss, flat)
        return loss.item(), slope.numpy()

    solved = minimize(
        objective, np.zeros(sum(counts)), jac=True, method="L-BFGS-B",
        options={"maxiter": 10_000, "maxfun": 20_000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-6},
    )  # fmt: skip
    *found, tau = parameters(torch.from_numpy(solved.x))
    theta, delta, alpha = (
        torch.where(seen, values, torch.nan) for seen, values in zip(present, found, strict=True)
    )
    p = rating_log_probabilities(theta[n] - delta[i] - alpha[j], tau[i]).exp()
    level = torch.arange(levels, dtype=p.dtype)
    expected = p @ level
    variance = p @ level.square() - expected.square()
    information = [
        p.new_zeros(size).index_add(0, facet, variance) for facet, size in zip(facets, sizes, strict=True)
    ]
    theta_se, delta_se, alpha_se = (
        torch.where(seen, (each + 1 / prior_variance).rsqrt(), torch.nan)
        for seen, each in zip(present, information, strict=True)
    )
    squares = p.new_zeros(sizes[2]).index_add(0, j, (y - expected).square())
    return Measured(theta, delta, alpha, tau, theta_se, delta_se, alpha_se, squares / information[2])


def _centred(values: Tensor, present: Tensor) -> Tensor:
    return values - values[present].mean()


def _check_links(facets: list[Tensor]) -> None:
    """Raise ValueError unless ratings link all members of every two facets: a constant could move between
    groups that nothing links."""
    for a, b in ((0, 1), (0, 2), (1, 2)):
        left, right = (torch.unique(facets[f], return_inverse=True)[1] for f in (a, b))
        size = int(left.max()) + 1
        n = size + int(right.max()) + 1
        links = coo_matrix((np.ones(len(left)), (left.numpy(), size + right.numpy())), shape=(n, n))
        groups = connected_components(links, directed=False)[0]
        if groups > 1:
            raise ValueError(
                f"{FACETS[a]}s and {FACETS[b]}s fall into {groups} groups that no rating links, so their"
                " values cannot be compared."
            )


def _check_levels(facets: list[Tensor], y: Tensor, levels: int) -> None:
    """Without a prior, likelihood has no maximum for members with only the lowest or highest level, and for
    items that miss a level."""
    for name, facet in zip(FACETS, facets, strict=True):
        count = facet.bincount().double()
        total = count.new_zeros(len(count)).index_add(0, facet, y.double())
        extreme = (count > 0) & ((total == 0) | (total == (levels - 1) * count))
        if bool(extreme.any()):
            raise ValueError(
                f"{name} {int(extreme.nonzero()[0])} has only lowest or only highest ratings, which needs a"
                " prior_variance below infinity."
            )
    used = torch.zeros(int(facets[1].max()) + 1, levels, dtype=torch.bool)
    used[facets[1], y] = True
    missing = (~used & used.any(dim=1, keepdim=True)).nonzero()
    if len(missing):
        raise ValueError(
            f"item {int(missing[0, 0])} never got level {int(missing[0, 1])}, which needs a prior_variance"
            " below infinity."
        )
