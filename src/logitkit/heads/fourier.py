"""The Fourier head: scores of ordered bins that are samples of a smooth density."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_positive
from logitkit.ops.sphere import unit
from logitkit.registry import Whole, part


def fourier_density(
    coefficients: Float[Tensor, "batch two_series"], z: Float[Tensor, "*batch points"]
) -> Float[Tensor, "batch points"]:
    """p(z) = |sum_l a_l exp(i l pi z)|^2 / (2 sum_l |a_l|^2), a density of period 2 that integrates to 1 over
    [-1, 1], at points z (points,) or at each row's own (batch, points).

    `coefficients` hold the real parts of a_0, ..., a_N and then their imaginary parts. By Fejer and Riesz
    p(z) = 1/2 + Re sum_{k=1..N} (c_k / c_0) exp(i k pi z), c the autocorrelation of a; as a square it cannot
    round below 0. a = 0, which has no density, gives 0.
    """
    re, im = unit(coefficients)[:, None].chunk(2, dim=-1)
    steps = torch.arange(re.shape[-1], dtype=torch.float64, device=z.device)[:, None]
    phase = math.pi * steps * z.double()[..., None, :]
    cos, sin = phase.cos().to(re.dtype), phase.sin().to(re.dtype)
    with torch.autocast(re.device.type, enabled=False):
        return ((re @ cos - im @ sin).square() + (re @ sin + im @ cos).square())[:, 0] / 2


def autocorrelation(
    coefficients: Float[Tensor, "batch two_series"],
) -> tuple[Float[Tensor, "batch series"], Float[Tensor, "batch series"]]:
    """Real and imaginary parts of c_k = sum_l conj(a_l) a_{l+k}, k = 0..N, in at least float32."""
    x = coefficients.to(torch.promote_types(coefficients.dtype, torch.float32))
    a = torch.complex(*x.chunk(2, dim=-1))
    length = a.shape[-1]
    c = torch.fft.ifft(torch.fft.fft(a, 2 * length).abs().square())[..., :length]
    return c.real, c.imag


def fourier_penalty(coefficients: Float[Tensor, "batch two_series"]) -> Float[Tensor, ""]:
    """2 mean_i sum_k 2 pi^2 k^2 |c_k|^2 over the rows' autocorrelations c, which are not normalised."""
    real, imaginary = autocorrelation(coefficients)
    k = torch.arange(real.shape[-1], device=real.device)
    weight = 4 * math.pi**2 * k.square().to(real.dtype)
    return ((real.square() + imaginary.square()) * weight).sum(dim=-1).mean()


def smoothness(pmf: Float[Tensor, "batch bins"], sigmas: int = 100) -> Float[Tensor, " batch"]:
    """How far each distribution over ordered bins is from smooth versions of itself, 0 for the uniform one.

    sum_{s=1..sigmas} 6 / (pi s)^2 |p - g_s * p|_2, g_s a normal of standard deviation s bins around the
    circle of bins, cut at bins - 1 steps. (The paper's smoothness metric: lower is smoother.)
    """
    m = pmf.shape[-1]
    s = torch.arange(1, sigmas + 1, dtype=torch.float64, device=pmf.device)
    reach = torch.arange(1 - m, m, dtype=torch.float64, device=pmf.device)
    kernel = torch.softmax(-(reach / s[:, None]).square() / 2, dim=-1)
    wrapped = kernel.new_zeros(sigmas, m).index_add(1, reach.long() % m, kernel)
    lost = (1 - torch.fft.fft(wrapped).real).square()
    power = torch.fft.fft(pmf.double()).abs().square() / m
    return (6 / (math.pi * s).square() * (power @ lost.T).sqrt()).sum(dim=-1)


class FourierLinear(nn.Linear):
    """The linear map from features to the series' coefficients, which both Fourier heads learn.

    It starts at a hundredth of torch's initial size, as the authors' code does.
    """

    def __init__(self, in_features: int, frequencies: int) -> None:
        check_positive(in_features=in_features)
        if not (isinstance(frequencies, int) and frequencies >= 0):
            raise ValueError(f"frequencies must be a whole number of at least 0, got {frequencies!r}.")
        super().__init__(in_features, 2 * (frequencies + 1))
        self.frequencies = frequencies
        with torch.no_grad():
            self.weight.div_(100)
            self.bias.div_(100)

    def coefficients(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch two_series"]:
        """Real parts of a_0, ..., a_N, then their imaginary parts."""
        return F.linear(check_features(features, self.in_features), self.weight, self.bias)

    def pdf(
        self, features: Float[Tensor, "batch in_features"], z: Float[Tensor, "*batch points"]
    ) -> Float[Tensor, "batch points"]:
        """The density at points `z` of [-1, 1]."""
        return fourier_density(self.coefficients(features), z)

    def penalty(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, ""]:
        """`fourier_penalty` of the coefficients, to be added to the loss with a small weight."""
        return fourier_penalty(self.coefficients(features))


@part(
    "fourier",
    "heads",
    title="Fourier Head: Helping Large Language Models Learn Complex Probability Distributions",
    paper="arXiv:2410.22269",
    number=75,
    replaces="linear",
    search_space={"frequencies": Whole(2, 64, log=True)},
)
class FourierHead(FourierLinear):
    """Class scores that are samples of a smooth density: for classes that are ordered bins of a number, such
    as quantised values, which a linear layer learns one by one.

    Equation: logits_j = log(q_j + eps), q_j = p(z_j) / sum_k p(z_k), z_j the centres of `num_classes` equal
    bins of [-1, 1], p(z) = 1/2 + Re sum_{k=1..N} (c_k / c_0) exp(i k pi z), c_k = sum_l conj(a_l) a_{l+k} the
    autocorrelation of N + 1 complex numbers a = W x + b.

    Shapes: features (batch, in_features) -> logits (batch, num_classes) in [log eps, log(1 + eps)], in at
    least float32; their softmax is q up to eps. `pdf(features, z)` is the density at any z,
    `penalty(features)` the paper's regulariser, which training may add to the loss (weight up to 1e-6).

    Defaults: N = 12 frequencies, as in the authors' run on two-mode data with 50 bins; eps = 1e-5 and initial
    weights a hundredth of torch's, as in their code. No regulariser, which is theirs as well.

    Raises: ValueError for sizes that are not positive, fewer than 0 frequencies, an eps that is not positive,
    features of another shape or dtype, or an empty batch.

    Source: Gillman, Aggarwal, Freeman, Singh, Sun, ICLR 2025, arXiv:2410.22269, algorithm 1; the sum of
    squares after Fejer and Riesz is the same series, evaluated without the autocorrelation.

    Not for: classes without an order; probabilities far below eps; jumps narrower than 2 / N.
    """

    def __init__(self, in_features: int, num_classes: int, frequencies: int = 12, eps: float = 1e-5) -> None:
        check_positive(num_classes=num_classes, eps=eps)
        super().__init__(in_features, frequencies)
        self.num_classes = num_classes
        self.eps = eps

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        j = torch.arange(self.num_classes, dtype=torch.float64, device=features.device)
        likelihood = self.pdf(features, (2 * j + 1) / self.num_classes - 1)
        total = likelihood.sum(dim=-1, keepdim=True)
        return torch.log(likelihood / torch.where(total > 0, total, 1.0) + self.eps)
