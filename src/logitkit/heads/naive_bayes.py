"""The naive Bayes head: class statistics in place of a trained last layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_positive, values_visible
from logitkit.registry import Choice, Real, part

STATISTICS = ("count", "mean", "scatter")


def merge_statistics(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> tuple[Float[Tensor, " classes"], Float[Tensor, "classes d"], Float[Tensor, "classes d"]]:
    """Count, mean and sum of squared deviations of two samples together, per class, without the cancellation
    of E[x^2] - E[x]^2 (Chan, Golub, LeVeque, "Updating formulae", 1979)."""
    (n1, mean1, scatter1), (n2, mean2, scatter2) = first, second
    n = n1 + n2
    share = (n2 / n.clamp(min=torch.finfo(n.dtype).tiny))[:, None]
    delta = mean2 - mean1
    return n, mean1 + share * delta, scatter1 + scatter2 + n1[:, None] * share * delta.square()


@part(
    "naive_bayes",
    "heads",
    title="Revisiting Discriminative vs. Generative Classifiers: Theory and Implications",
    paper="arXiv:2302.02334",
    number=53,
    replaces="linear",
    needs=("target",),
    search_space={"shared_variance": Choice(True, False), "memory": Real(0.9, 1.0)},
)
class NaiveBayesHead(nn.Module):
    """Gaussian naive Bayes in closed form: a last layer without training, for frozen features with only a few
    examples per feature, where a linear probe overfits.

    Equation: logits_k = log pi_k - sum_j (x_j - mu_kj)^2 / (2 v_kj) - sum_j (log v_kj) / 2, up to a term that
    is the same for all classes, with mu_k and pi_k the mean and the frequency of class k. With
    `shared_variance` v_kj = v_j, the mean squared deviation from the own class's mean, and the logits are
    linear in x; without, v_kj is that of class k alone, and they are quadratic.

    Shapes: features (batch, in_features) -> logits (batch, num_classes), log-probabilities up to a shift of
    each row, in at least float32. `fit(features, y)` and `partial_fit(features, y)` take labels (batch,) and
    return the head; chunks in any order give what one fit gives. `as_linear()` is the same as a
    `torch.nn.Linear`. In training `head(features, target)` returns the logits of what it knew before, then
    learns the batch: a backbone is trained through class statistics that are constant in the gradient.

    Defaults: shared variance, which is what the paper studies. To every variance `eps` = 1e-6 times that of
    the feature over all classes is added, so that rescaling a feature changes nothing; a constant feature is
    left out. pi_k = (n_k + smoothing) / (n + smoothing K), smoothing = 1, and a class without examples is
    taken to be spread as all classes together. In training, counts are multiplied by `memory` = 0.99 before
    each batch, so that features which a backbone has since moved are forgotten; use memory = 1 when the
    features are fixed. Statistics are kept in float64 whatever the module is cast to.

    Raises: ValueError for sizes, eps or smoothing that are not positive, a memory outside (0, 1], features of
    another shape or dtype, NaN to learn from, an empty batch, labels out of range, or `as_linear` without
    shared variance.

    Source: Zheng et al., ICML 2023, arXiv:2302.02334, section 3 and the authors' `gaussnb.py`, which has
    one variance for all classes, adds 1e-9 to it whatever the feature's scale and does not smooth pi; the two
    regimes are those of Ng and Jordan, "On Discriminative vs. Generative Classifiers", NIPS 2001.

    Not for: plenty of labelled examples of dependent features, where a linear probe ends lower; calibrated
    probabilities, as dependent features are counted as if each were new evidence.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        shared_variance: bool = True,
        eps: float = 1e-6,
        smoothing: float = 1.0,
        memory: float = 0.99,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, eps=eps, smoothing=smoothing)
        if not 0 < memory <= 1:
            raise ValueError(f"memory must lie in (0, 1], got {memory}.")
        self.in_features = in_features
        self.num_classes = num_classes
        self.shared_variance = shared_variance
        self.eps = eps
        self.smoothing = smoothing
        self.memory = memory
        shapes = ((num_classes,), (num_classes, in_features), (num_classes, in_features))
        for name, shape in zip(STATISTICS, shapes, strict=True):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def fit(self, features: Float[Tensor, "batch in_features"], y: Int[Tensor, " batch"]) -> NaiveBayesHead:
        """Learn from these examples alone; returns self."""
        for name in STATISTICS:
            getattr(self, name).zero_()
        return self.partial_fit(features, y)

    @torch.no_grad()
    def partial_fit(
        self, features: Float[Tensor, "batch in_features"], y: Int[Tensor, " batch"]
    ) -> NaiveBayesHead:
        """Learn from these examples as well; returns self."""
        x = check_features(features, self.in_features).double()
        y = check_labels(y, x.shape[0], self.num_classes)
        if values_visible(x) and math.isnan(x.amin()):
            raise ValueError(f"features {tuple(x.shape)} contain NaN; expected numbers.")
        member = (y == torch.arange(self.num_classes, device=y.device)[:, None]).to(x)
        count = member.sum(dim=1)
        mean = member @ x / count.clamp(min=1)[:, None]
        scatter = member @ (x - mean[y]).square()
        merged = merge_statistics((self.count, self.mean, self.scatter), (count, mean, scatter))
        for name, value in zip(STATISTICS, merged, strict=True):
            getattr(self, name).copy_(value)
        return self

    def forward(
        self, features: Float[Tensor, "batch in_features"], target: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        x = check_features(features, self.in_features)
        with torch.autocast(x.device.type, enabled=False):
            logits = self._linear(x) if self.shared_variance else self._quadratic(x)
            if target is not None and self.training:
                self.count.mul_(self.memory)
                self.scatter.mul_(self.memory)
                self.partial_fit(x.detach(), target)
        return logits

    def as_linear(self) -> nn.Linear:
        """A `torch.nn.Linear` with the same logits, up to a shift of each row."""
        if not self.shared_variance:
            raise ValueError(
                f"logits with a variance for each of {self.num_classes} classes are not linear in the"
                " features; use shared_variance=True."
            )
        centre, mean, precision, log_prior = self._gaussians()
        weight = mean * precision
        layer = nn.Linear(self.in_features, self.num_classes, device=weight.device)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(log_prior - 0.5 * (weight * mean).sum(dim=1) - weight @ centre)
        return layer

    def _gaussians(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean of everything (d,), the classes' means relative to it (classes, d), their precisions 1/v
        (or 0 for a constant feature), (d,) or (classes, d), and log pi (classes,)."""
        count = self.count[:, None]
        n = count.sum().clamp(min=torch.finfo(count.dtype).tiny)
        centre = (count * self.mean).sum(dim=0) / n
        mean = torch.where(count > 0, self.mean - centre, 0.0)
        total = (self.scatter + count * mean.square()).sum(dim=0) / n
        if self.shared_variance:
            variance = self.scatter.sum(dim=0) / n
        else:
            variance = torch.where(count > 0, self.scatter / torch.where(count > 0, count, 1.0), total)
        variance = variance + self.eps * total
        precision = torch.where(variance > 0, 1 / torch.where(variance > 0, variance, 1.0), 0.0)
        prior = (self.count + self.smoothing) / (self.count.sum() + self.smoothing * self.num_classes)
        return centre, mean, precision, prior.log()

    def _linear(self, x: Tensor) -> Tensor:
        centre, mean, precision, log_prior = self._gaussians()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = precision.sqrt()
        directions = mean * scale
        offset = log_prior - 0.5 * directions.square().sum(dim=1)
        white = (x - centre.to(x)) * scale.to(x)
        return white @ directions.to(x).T + offset.to(x)

    def _quadratic(self, x: Tensor) -> Tensor:
        centre, mean, precision, log_prior = self._gaussians()
        away = x.double() - centre
        squares = away.square() @ precision.T - 2 * away @ (mean * precision).T
        volume = torch.where(precision > 0, precision, 1.0).log().sum(dim=1)
        offset = log_prior + 0.5 * (volume - (mean.square() * precision).sum(dim=1))
        return (offset - 0.5 * squares).to(torch.promote_types(x.dtype, torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NaiveBayesHead:
        """Move the statistics, but do not round them."""
        exact = {name: getattr(self, name) for name in STATISTICS}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def linear_eval_curve(
    features: Float[Tensor, "batch d"],
    y: Int[Tensor, " batch"],
    sizes: Sequence[int],
    heads: Mapping[str, Callable[[Tensor, Tensor], Callable[[Tensor], Any]]],
    test: tuple[Float[Tensor, "test d"], Int[Tensor, " test"]],
) -> dict[str, list[float]]:
    """Test error of each head, fitted on the first m rows for every m of `sizes`.

    heads: name -> function of (features, labels) that returns a fitted head, itself a function from features
    to logits.
    """
    x_test, y_test = test
    return {
        name: [
            (fit(features[:m], y[:m])(x_test).argmax(dim=1) != y_test).double().mean().item() for m in sizes
        ]
        for name, fit in heads.items()
    }


def two_regime_crossing(
    sizes: Sequence[int], generative: Sequence[float], discriminative: Sequence[float]
) -> float | None:
    """The sample size from which on the discriminative head has the lower error, between two of `sizes` by
    interpolating the difference in log m; None if one of the two is ahead all along."""
    gap = [g - d for g, d in zip(generative, discriminative, strict=True)]
    behind = [i for i, each in enumerate(gap) if each <= 0]
    if not behind or behind[-1] == len(gap) - 1:
        return None
    i = behind[-1]
    share = -gap[i] / (gap[i + 1] - gap[i])
    return sizes[i] * (sizes[i + 1] / sizes[i]) ** share
