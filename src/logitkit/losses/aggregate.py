"""Learning from aggregate responses: only the mean response of each bag of examples is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from logitkit.ops import (
    check_features,
    check_numbers,
    check_positive,
    check_reduction,
    reduce,
    values_visible,
)
from logitkit.registry import Real, part


def make_bags(n: int, size: int, generator: Generator | None = None) -> Int[Tensor, " n"]:
    """The bag of each of `n` examples: random bags of `size`, and one smaller bag for the rest."""
    if not 1 <= size <= n:
        raise ValueError(f"size must lie in [1, {n}], got {size}.")
    return (torch.arange(n) // size)[torch.randperm(n, generator=generator)]


def bag_means(
    values: Float[Tensor, " batch *outputs"], bags: Int[Tensor, " batch"], count: int | None = None
) -> Float[Tensor, " bags *outputs"]:
    """The mean of the rows of each bag; bags are numbered 0, 1, ..., and none may be empty."""
    sizes = bags.bincount(minlength=count or 0)
    sums = values.new_zeros(len(sizes), *values.shape[1:]).index_add(0, bags, values)
    return sums / sizes.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def dp_bag_means(
    y: Float[Tensor, " batch"],
    bags: Int[Tensor, " batch"],
    epsilon: float,
    clip: float,
    generator: Generator | None = None,
) -> Float[Tensor, " bags"]:
    """Bag means that are `epsilon`-differentially private in each response.

    Responses are clipped to [-clip, clip], and the mean of a bag of k gets Laplace noise of scale
    2 clip / (k epsilon).
    """
    check_positive(epsilon=epsilon, clip=clip)
    means = bag_means(y.clamp(-clip, clip), bags)
    scale = 2 * clip / (epsilon * bags.bincount().to(means.dtype))
    u = torch.rand(means.shape, generator=generator, dtype=torch.float64).to(means) - 0.5
    return means - scale * u.sign() * torch.log1p(-2 * u.abs())


def _log_bag_means(
    log_p: Float[Tensor, "batch classes"], bags: Int[Tensor, " batch"], sizes: Float[Tensor, " bags"]
) -> Float[Tensor, "bags classes"]:
    """log of the bags' mean probabilities, each bag relative to its largest."""
    index = bags[:, None].expand_as(log_p)
    highest = log_p.detach().new_full((len(sizes), log_p.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, index, log_p.detach(), "amax")
    sums = log_p.new_zeros(highest.shape).index_add(0, bags, (log_p - highest[bags]).exp())
    return highest + (sums / sizes[:, None]).log()


@part(
    "aggregate",
    "losses",
    title="Learning from Aggregate responses: Instance Level versus Bag Level Loss Functions",
    paper="arXiv:2401.11081",
    number=76,
    tasks=("bags",),
    needs=("bags",),
    search_space={"rho": Real(0.0, 1.0)},
)
class AggregateLoss(nn.Module):
    """The loss for examples whose labels are only known as the mean of a bag, as privacy or surveys leave
    them: between fitting the bags' means and fitting every example to its bag's mean.

    Equation: L = (1 - rho) l(ybar_a, mean_{i in a} f_i) + rho mean_{i in a} l(ybar_a, f_i), averaged over
    bags a with their sizes as weights, so that rho = 1 is the mean over examples. l is the squared error
    ("mse"), for which L = bag loss + rho * variance of the predictions within the bag; or the cross-entropy
    of ybar to f = sigmoid(score) ("bce") or f = softmax(scores) ("ce"), whose mean is that of probabilities.

    Shapes: prediction (batch, outputs) real, (batch, 1) for "bce", (batch, classes) for "ce"; target
    (bags, outputs), or (bags,) for one output, the bags' means; bags (batch,) the row of `target` that each
    example belongs to, with every bag whole. Returns a scalar, or (bags,) with `reduction="none"`; squared
    errors are averaged over outputs.

    Defaults: rho = 0.5, half way; the paper chooses it on validation bags (see `select_rho`).

    Raises: ValueError for a rho outside [0, 1], an unknown base, a bag without examples or without target,
    wrong shapes or dtypes, NaN, or an empty batch.

    Source: Javanmard, Chen, Mirrokni, Badanidiyuru, Fu, ICLR 2024, arXiv:2401.11081, sections 2 and 3; its
    closed form for linear models is `AggregateRidge`, its private means `dp_bag_means`.

    Not for: bags that are cut by batches; sums instead of means. With rho near 1 predictions shrink towards
    the overall mean, by about 1 / size of the bags.
    """

    def __init__(
        self, rho: float = 0.5, base: Literal["mse", "bce", "ce"] = "mse", *, reduction: str = "mean"
    ) -> None:
        super().__init__()
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must lie in [0, 1], got {rho}.")
        if base not in ("mse", "bce", "ce"):
            raise ValueError(f"base must be 'mse', 'bce' or 'ce', got {base!r}.")
        check_reduction(reduction)
        self.rho = rho
        self.base = base
        self.reduction = reduction

    def forward(
        self,
        prediction: Float[Tensor, "batch outputs"],
        target: Float[Tensor, "bags outputs"] | Float[Tensor, " bags"],
        bags: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""] | Float[Tensor, " bags"]:
        f, y, bags = _check_bags(prediction, target, bags)
        sizes = bags.bincount(minlength=len(y)).to(f.dtype)
        if self.base == "mse":
            of_bag = (y - bag_means(f, bags, len(y))).square().mean(dim=1)
            of_rows = bag_means((y[bags] - f).square().mean(dim=1), bags, len(y))
        else:
            if self.base == "bce":
                log_p, y = torch.cat([F.logsigmoid(-f), F.logsigmoid(f)], dim=1), torch.cat([1 - y, y], dim=1)
            else:
                log_p = F.log_softmax(f, dim=1)
            of_bag = -(y * _log_bag_means(log_p, bags, sizes)).sum(dim=1)
            of_rows = -(y * bag_means(log_p, bags, len(y))).sum(dim=1)
        loss = (1 - self.rho) * of_bag + self.rho * of_rows
        return loss if self.reduction == "none" else reduce(loss, self.reduction, sizes)


def _check_bags(prediction: Tensor, target: Tensor, bags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction (batch, outputs) and target (bags, outputs) in one dtype of at least float32, and bags."""
    f = check_features(prediction)
    y = target[:, None] if target.ndim == 1 else target
    if y.ndim != 2 or y.shape[1] != f.shape[1] or len(y) == 0:
        raise ValueError(f"target must have shape (bags, {f.shape[1]}), got {tuple(target.shape)}.")
    if bags.shape != (len(f),) or bags.is_floating_point():
        raise ValueError(
            f"bags must hold integers of shape ({len(f)},) to match the prediction, got {bags.dtype} of shape"
            f" {tuple(bags.shape)}."
        )
    if values_visible(bags):
        low, high = int(bags.min()), int(bags.max())
        if low < 0 or high >= len(y):
            raise ValueError(
                f"bags name {low if low < 0 else high}; expected rows of the target, in [0, {len(y)})."
            )
        if len(bags.unique()) < len(y):
            raise ValueError(f"only {len(bags.unique())} of the target's {len(y)} bags have examples.")
    f = f.to(torch.promote_types(f.dtype, torch.float32))
    for name, x in (("prediction", f), ("target", y)):
        check_numbers(x, name)
    return f, y.to(f.dtype), bags.long()


class AggregateRidge:
    """The minimiser of `AggregateLoss` with base "mse" over linear models without intercept.

    Equation: theta = (X^T (M + rho (I - M)) X)^-1 X^T M y, M the projector onto bag means. rho > 0 makes it
    unique even with fewer bags than features; with rho = 0 it is then the shortest of the minimisers.

    Shapes: `fit(x, target, bags)` with x (batch, d), target (bags,), bags (batch,); `predict(x)` -> (batch,).
    Computed in float64; `theta` (d,) is what was learned.

    Source: arXiv:2401.11081, section 3.
    """

    def __init__(self, rho: float = 0.5) -> None:
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must lie in [0, 1], got {rho}.")
        self.rho = rho

    @torch.no_grad()
    def fit(
        self, x: Float[Tensor, "batch d"], target: Float[Tensor, " bags"], bags: Int[Tensor, " batch"]
    ) -> AggregateRidge:
        """Solve for theta; returns self."""
        x, means = check_features(x).double(), target.double()
        if means.shape != (int(bags.max()) + 1,) or bags.shape != x.shape[:1]:
            raise ValueError(
                f"target must have shape ({int(bags.max()) + 1},) and bags ({len(x)},), got"
                f" {tuple(target.shape)} and {tuple(bags.shape)}."
            )
        centre = bag_means(x, bags)
        root = bags.bincount().double().sqrt()
        rows = torch.cat([root[:, None] * centre, math.sqrt(self.rho) * (x - centre[bags])])
        right = torch.cat([root * means, means.new_zeros(len(x))])
        # The driver that takes dependent columns is on the CPU only.
        solution = torch.linalg.lstsq(rows.cpu(), right[:, None].cpu(), driver="gelsd").solution
        self.theta = solution[:, 0].to(x.device)
        return self

    def predict(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """x theta, in float64."""
        return check_features(x).double() @ self.theta


def select_rho(
    x: Float[Tensor, "batch d"],
    target: Float[Tensor, " bags"],
    bags: Int[Tensor, " batch"],
    rhos: Sequence[float],
    folds: int = 5,
    generator: Generator | None = None,
) -> float:
    """The one of `rhos` whose linear model best predicts the means of held-out bags, in cross-validation."""
    if not 2 <= folds <= len(target):
        raise ValueError(f"folds must lie in [2, {len(target)}], the number of bags, got {folds}.")
    fold = (torch.arange(len(target)) % folds)[torch.randperm(len(target), generator=generator)]
    fold = fold.to(bags.device)
    errors = torch.zeros(len(rhos), dtype=torch.float64)
    for held in range(folds):
        outside = fold != held
        rows, number = outside[bags], outside.cumsum(0) - 1
        means = bag_means(x.double(), bags)[~outside]
        for i, rho in enumerate(rhos):
            model = AggregateRidge(rho).fit(x[rows], target[outside], number[bags[rows]])
            errors[i] += (model.predict(means) - target[~outside]).square().sum().cpu()
    return float(rhos[int(errors.argmin())])
