"""The histogram head: regression as classification over bins."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_logits, check_positive, check_reduction, reduce, values_visible
from logitkit.registry import Choice, Real, Whole, part


def hl_gauss_targets(
    t: Float[Tensor, "..."], edges: Float[Tensor, " edges"], sigma: float
) -> Float[Tensor, "... bins"]:
    """Mass of a normal around `t`, truncated to the edges, in each bin, in float64.

    q_i = (F(e_{i+1}) - F(e_i)) / (F(e_m) - F(e_0)), F the distribution function of N(t, sigma^2).
    """
    cdf = torch.special.ndtr((edges.double() - t.double()[..., None]) / sigma)
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])


def two_hot_targets(t: Float[Tensor, "..."], support: Float[Tensor, " bins"]) -> Float[Tensor, "... bins"]:
    """Mass on the two points of the evenly spaced `support` next to `t` whose mean is `t`, in float64.

    q_i = max(0, 1 - |t - z_i| / (z_2 - z_1)); `t` must lie within the support.
    """
    support = support.double()
    return (1 - (t.double()[..., None] - support).abs() / (support[1] - support[0])).clamp(min=0)


def c51_project(
    atoms: Float[Tensor, "*batch atoms"],
    probabilities: Float[Tensor, "*batch atoms"],
    support: Float[Tensor, " bins"],
) -> Float[Tensor, "*batch bins"]:
    """A distribution over any `atoms` (such as r + gamma z_j) moved onto the evenly spaced `support`.

    Every atom is clamped to the support and shared by the two-hot rule:
    q_i = sum_j p_j max(0, 1 - |clamp(atom_j) - z_i| / (z_2 - z_1)).
    """
    inside = atoms.double().clamp(support[0].double(), support[-1].double())
    return (probabilities.double()[..., None] * two_hot_targets(inside, support)).sum(dim=-2)


@part(
    "histogram",
    "heads",
    title="Stop Regressing: Training Value Functions via Classification for Scalable Deep RL",
    paper="arXiv:2403.03950",
    number=4,
    replaces="linear",
    aliases=("hl_gauss",),
    tasks=("regression",),
    search_space={
        "bins": Whole(21, 201, log=True),
        "target": Choice("hl_gauss", "two_hot"),
        "sigma_ratio": Real(0.25, 3.0, log=True),
    },
)
class HistogramHead(nn.Linear):
    """A number predicted as the mean of a histogram and trained by cross-entropy: for noisy, non-stationary
    or heavy-tailed regression targets, where squared error trains badly.

    Equation: prediction = sum_i p_i z_i, p = softmax(W x + b); loss = -sum_i q_i(t) log p_i, and `target`
    names q: "hl_gauss" is the mass of N(t, sigma^2) in each of m equal bins of [vmin, vmax], renormalised,
    with z_i the bin centres and sigma = `sigma_ratio` times the bin width; "two_hot" puts the mass on the two
    nearest of m points evenly spaced from vmin to vmax so that its mean is t; "c51" is the same rule for
    every atom of a distribution, and equals "two_hot" for plain numbers.

    Shapes: features (batch, in_features) -> logits (batch, bins). `loss(logits, target)` takes real targets
    (batch,) or (batch, 1) and returns nats; `predict(logits)` -> (batch,) in the targets' units;
    `project(t)` -> q (batch, bins), and `project(atoms, probabilities)` the projection of a distribution.
    Targets outside [vmin, vmax] are clamped to it.

    Defaults: 51 bins and sigma = 0.75 bin widths, the paper's. vmin and vmax have none: they are the range of
    the targets, for "hl_gauss" best a few sigma wider, as the outer half bins cannot be predicted.

    Raises: ValueError for fewer than 2 bins, vmin not below vmax, an unknown target, a `sigma_ratio` that is
    not positive, wrong shapes or dtypes, NaN, or an empty batch.

    Source: Farebrother et al., ICML 2024, arXiv:2403.03950, section 3 and appendix A (HL-Gauss after Imani
    and White, arXiv:1806.04613); the projection from Bellemare, Dabney, Munos, arXiv:1707.06887, equation 7.

    Not for: targets without a known range, or accuracy far below a bin width on noiseless data.
    """

    def __init__(
        self,
        in_features: int,
        vmin: float,
        vmax: float,
        bins: int = 51,
        target: Literal["hl_gauss", "two_hot", "c51"] = "hl_gauss",
        sigma_ratio: float = 0.75,
    ) -> None:
        if not (isinstance(bins, int) and bins >= 2):
            raise ValueError(f"bins must be a whole number of at least 2, got {bins!r}.")
        if not -math.inf < vmin < vmax < math.inf:
            raise ValueError(f"vmin must be below vmax and both finite, got vmin {vmin} and vmax {vmax}.")
        if target not in ("hl_gauss", "two_hot", "c51"):
            raise ValueError(f"target must be 'hl_gauss', 'two_hot' or 'c51', got {target!r}.")
        check_positive(in_features=in_features, sigma_ratio=sigma_ratio)
        super().__init__(in_features, bins)
        self.target = target
        self.sigma = sigma_ratio * (vmax - vmin) / bins
        self.vmin, self.vmax = vmin, vmax

    @property
    def edges(self) -> Float[Tensor, " edges"]:
        """The bins' edges, in float64 whatever the weights are."""
        return torch.linspace(
            self.vmin, self.vmax, self.out_features + 1, dtype=torch.float64, device=self.weight.device
        )

    @property
    def support(self) -> Float[Tensor, " bins"]:
        """The values z_i whose mean is predicted, in float64."""
        if self.target == "hl_gauss":
            return (self.edges[1:] + self.edges[:-1]) / 2
        return torch.linspace(
            self.vmin, self.vmax, self.out_features, dtype=torch.float64, device=self.weight.device
        )

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch bins"]:
        return F.linear(check_features(features, self.in_features), self.weight, self.bias)

    def project(
        self,
        t: Float[Tensor, " batch"] | Float[Tensor, "batch atoms"],
        probabilities: Float[Tensor, "batch atoms"] | None = None,
    ) -> Float[Tensor, "batch bins"]:
        """The target distribution q of numbers `t`, or of `probabilities` on the atoms `t`, in float64."""
        t = t.clamp(self.vmin, self.vmax)
        q = (
            hl_gauss_targets(t, self.edges, self.sigma)
            if self.target == "hl_gauss"
            else two_hot_targets(t, self.support)
        )
        return q if probabilities is None else (probabilities.to(q)[..., None] * q).sum(dim=-2)

    def loss(
        self, logits: Float[Tensor, "batch bins"], target: Float[Tensor, "..."], reduction: str = "mean"
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Cross-entropy of the histogram to the projected targets, in nats."""
        check_reduction(reduction)
        logits = check_logits(logits, classes=self.out_features)
        t = _check_numbers(target, logits.shape[0])
        q = self.project(t).to(logits.dtype)
        return reduce(-(q * F.log_softmax(logits, dim=-1)).sum(dim=-1), reduction)

    def predict(self, logits: Float[Tensor, "batch bins"]) -> Float[Tensor, " batch"]:
        """The mean of the histogram, in the targets' units."""
        logits = check_logits(logits, classes=self.out_features)
        return (torch.softmax(logits, dim=-1) * self.support.to(logits.dtype)).sum(dim=-1)


def _check_numbers(target: Tensor, batch: int) -> Float[Tensor, " batch"]:
    """Real targets (batch,) or (batch, 1) as (batch,)."""
    if target.shape not in ((batch,), (batch, 1)):
        raise ValueError(f"target must have shape ({batch},) to match the logits, got {tuple(target.shape)}.")
    if not target.is_floating_point():
        raise ValueError(f"target must be floating point, got {target.dtype}.")
    if values_visible(target) and bool(torch.isnan(target).any()):
        raise ValueError("target contains NaN; expected numbers.")
    return target.reshape(batch)
