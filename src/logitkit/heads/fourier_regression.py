"""The Fourier head for regression: a last layer that predicts a whole distribution, trained by likelihood."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.heads.fourier import FourierLinear, autocorrelation, fourier_density, fourier_penalty
from logitkit.ops import check_logits, check_regression, reduce
from logitkit.ops.sphere import unit
from logitkit.registry import Whole, part


@part(
    "fourier_regression",
    "heads",
    title="Fourier Head: Helping Large Language Models Learn Complex Probability Distributions",
    paper="arXiv:2410.22269",
    number=75,
    companion_of="fourier",
    replaces="linear",
    tasks=("regression",),
    search_space={"frequencies": Whole(2, 64, log=True)},
)
class FourierRegressionHead(FourierLinear):
    """A number predicted with its whole density, which may have several modes: for targets whose noise is
    skewed, bounded or two-sided, where squared error only sees the mean.

    Equation: loss = -log(p(u) 2 / (vmax - vmin)), u = 2 (t - vmin) / (vmax - vmin) - 1, with p(u) the density
    of `fourier` on [-1, 1] for coefficients a = W x + b; prediction = the density's mean, in [-1, 1]
    sum_{k=1..N} 2 (-1)^k / (k pi) Im(c_k / c_0), c the autocorrelation of a.

    Shapes: features (batch, in_features) -> coefficients (batch, 2 (N + 1)), real parts before imaginary
    ones. `loss(coefficients, target)` takes real targets (batch,) or (batch, 1) and returns nats;
    `predict(coefficients)` -> (batch,) in the targets' units. Targets outside [vmin, vmax] are clamped to it.

    Defaults: N = 12 frequencies, initial weights a hundredth of torch's and no regulariser (`gamma` = 0), all
    as in the authors' code. vmin and vmax have none: they are the range of the targets with some margin, for
    the density is periodic and joins both ends.

    Raises: ValueError for vmin not below vmax, a negative gamma, fewer than 0 frequencies, wrong shapes or
    dtypes, NaN, or an empty batch.

    Source: Gillman, Aggarwal, Freeman, Singh, Sun, ICLR 2025, arXiv:2410.22269, and the head trained by
    maximum likelihood in the authors' code; the mean is the series' own, integrated term by term.

    Not for: targets without a known range, or noise narrower than (vmax - vmin) / N.
    """

    def __init__(
        self, in_features: int, vmin: float, vmax: float, frequencies: int = 12, gamma: float = 0.0
    ) -> None:
        if not -math.inf < vmin < vmax < math.inf:
            raise ValueError(f"vmin must be below vmax and both finite, got vmin {vmin} and vmax {vmax}.")
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}.")
        super().__init__(in_features, frequencies)
        self.vmin, self.vmax = vmin, vmax
        self.gamma = gamma

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch two_series"]:
        return self.coefficients(features)

    def loss(
        self,
        coefficients: Float[Tensor, "batch two_series"],
        target: Float[Tensor, "..."],
        reduction: str = "mean",
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Negative log-density of the targets in their units, in nats, plus gamma times the penalty."""
        a = check_logits(coefficients, "coefficients", classes=self.out_features)
        _, t = check_regression(a[:, 0], target)
        half = (self.vmax - self.vmin) / 2
        u = (t.clamp(self.vmin, self.vmax) - self.vmin) / half - 1
        density = fourier_density(a, u[:, None])[:, 0].clamp(min=torch.finfo(a.dtype).tiny)
        value = reduce(math.log(half) - density.log(), reduction)
        return value + self.gamma * fourier_penalty(a) if self.gamma else value

    def predict(self, coefficients: Float[Tensor, "batch two_series"]) -> Float[Tensor, " batch"]:
        """The mean of the density, in the targets' units."""
        a = unit(check_logits(coefficients, "coefficients", classes=self.out_features))
        _, imaginary = autocorrelation(a)
        k = torch.arange(1, self.frequencies + 1, device=a.device)
        weight = (2 * (-1.0) ** k / (math.pi * k)).to(a.dtype)
        mean = (imaginary[:, 1:] * weight).sum(dim=-1)
        return self.vmin + (mean + 1) * (self.vmax - self.vmin) / 2
