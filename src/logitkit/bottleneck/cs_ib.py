"""The Cauchy-Schwarz information bottleneck for regression: predict well from codes that forget the input."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_features, check_numbers, check_positive, check_regression
from logitkit.registry import Choice, Real, part

# Inside logarithms, so that kernels that are all 0 have one.
TINY = 1e-12


def gaussian_gram(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], sigma: float) -> Float[Tensor, "n m"]:
    """exp(-|x_i - y_j|^2 / (2 sigma^2))."""
    with torch.autocast(x.device.type, enabled=False):
        squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    return (-squares.clamp(min=0) / (2 * sigma**2)).exp()


def median_sigma(x: Float[Tensor, "n d"]) -> float:
    """The median distance between two rows, a common kernel width; at least 0.01."""
    distances = torch.pdist(x.detach().flatten(1).double())
    return max(float(distances.median()), 0.01) if len(distances) else 1.0


def cs_qmi(
    x: Float[Tensor, "n d"],
    t: Float[Tensor, "n k"],
    sigma: float | tuple[float, float] = 1.0,
    normalized: bool = False,
) -> Float[Tensor, ""]:
    """Cauchy-Schwarz quadratic mutual information of paired rows, in bits, at least 0.

    With Gram matrices K of x and T of t: log mean_ij K_ij T_ij + log mean K mean T
    - 2 log mean_i (mean_j K_ij)(mean_j T_ij), logarithms to base 2. `sigma` is the kernels' width, or one for
    x and one for t. `normalized` divides by sqrt(I(x, x) I(t, t)).
    """
    wide, narrow = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    gram_x, gram_t = gaussian_gram(x, x, wide), gaussian_gram(t, t, narrow)
    value = _qmi(gram_x, gram_t)
    if not normalized:
        return value
    return value / (_qmi(gram_x, gram_x) * _qmi(gram_t, gram_t)).clamp(min=TINY).sqrt()


def _qmi(k: Float[Tensor, "n n"], t: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    joint, apart = (k * t).mean(), k.mean() * t.mean()
    cross = (k.mean(dim=1) * t.mean(dim=1)).mean()
    return _log2(joint) + _log2(apart) - 2 * _log2(cross)


def conditional_cs(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, " n"],
    prediction: Float[Tensor, " n"],
    sigma: float = 1.0,
    denominator: Literal["squared_sum", "sum_of_squares"] = "squared_sum",
) -> Float[Tensor, ""]:
    """Cauchy-Schwarz divergence between p(y | x) and p(prediction | x), in bits; 0 if they are equal.

    With K, L1, L2 the Gram matrices of x, y and the prediction and L21_ji the kernel of prediction_j and y_i:
    log sum_j a_j(L1) + log sum_j a_j(L2) - 2 log sum_j a_j(L21), a_j(L) = sum_i K_ji L_ji / D_j. D_j is
    (sum_i K_ji)^2, the estimator of a conditional density, or sum_i K_ji^2.
    """
    k = gaussian_gram(x, x, sigma)
    below = k.sum(dim=1).square() if denominator == "squared_sum" else k.square().sum(dim=1)
    columns = (y[:, None], prediction[:, None])

    def term(a: Tensor, b: Tensor) -> Tensor:
        return _log2(((k * gaussian_gram(a, b, sigma)).sum(dim=1) / below).sum())

    truth, guess = columns
    return term(truth, truth) + term(guess, guess) - 2 * term(guess, truth)


def _log2(value: Tensor) -> Tensor:
    return torch.log2(value + TINY)


@part(
    "cs_ib",
    "bottleneck",
    title="Cauchy-Schwarz Divergence Information Bottleneck for Regression",
    paper="arXiv:2404.17951",
    number=14,
    replaces="mse",
    tasks=("regression",),
    needs=("embeddings", "inputs"),
    search_space={
        "beta": Real(1e-3, 1.0, log=True),
        "sigma": Real(0.3, 3.0, log=True),
        "denominator": Choice("squared_sum", "sum_of_squares"),
    },
)
class CSIB(nn.Module):
    """A regression objective that matches the distribution of the targets and compresses the codes it is
    predicted from: for robustness to noise and attacks on the inputs.

    Equation: loss = D(y | x, prediction | x) + beta I(x, t), in bits, over the examples of a batch, t the
    codes (pooled features). D is the conditional Cauchy-Schwarz divergence (`conditional_cs`), I the
    quadratic mutual information (`cs_qmi`), both from Gaussian kernels of width sigma.

    Shapes: prediction and target (batch,) or (batch, 1) real, embeddings (batch, d), inputs (batch, ...),
    which are flattened; returns a scalar that depends on the whole batch. Targets and inputs should be
    standardised, as the engine does, for sigma is in their units.

    Defaults: beta = 0.01, sigma = 1 and I normalised by sqrt(I(x, x) I(t, t)), as the authors train; the
    paper's denominator, "squared_sum" (their code has "sum_of_squares").

    Raises: ValueError for a negative beta, a sigma that is not positive, an unknown denominator, wrong shapes
    or dtypes, batches that differ, NaN, or an empty batch.

    Source: Yu, Yu, Lokse, Jenssen, Principe, ICLR 2024, arXiv:2404.17951, equations 9-12; the authors'
    `loss_cs.py`.

    Not for: batches of a few examples, whose kernels say little; targets without a common scale.
    """

    def __init__(
        self,
        beta: float = 0.01,
        sigma: float = 1.0,
        denominator: Literal["squared_sum", "sum_of_squares"] = "squared_sum",
        normalized: bool = True,
    ) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}.")
        check_positive(sigma=sigma)
        if denominator not in ("squared_sum", "sum_of_squares"):
            raise ValueError(f"denominator must be 'squared_sum' or 'sum_of_squares', got {denominator!r}.")
        self.beta = beta
        self.sigma = sigma
        self.denominator = denominator
        self.normalized = normalized

    def forward(
        self,
        prediction: Float[Tensor, " batch"] | Float[Tensor, "batch 1"],
        target: Float[Tensor, " batch"] | Float[Tensor, "batch 1"],
        embeddings: Float[Tensor, "batch d"],
        inputs: Float[Tensor, " batch *shape"],
    ) -> Float[Tensor, ""]:
        prediction, target = check_regression(prediction, target)
        x, t = (
            _check_rows(name, rows.flatten(1) if rows.ndim > 2 else rows, prediction)
            for name, rows in (("inputs", inputs), ("embeddings", embeddings))
        )
        divergence = conditional_cs(x, target, prediction, self.sigma, self.denominator)
        return divergence + self.beta * cs_qmi(x, t, self.sigma, self.normalized)


def _check_rows(name: str, x: Tensor, like: Tensor) -> Float[Tensor, "batch d"]:
    """As many rows as the prediction has, none NaN, in its dtype."""
    if x.ndim != 2 or len(x) != len(like):
        raise ValueError(f"{name} must have shape ({len(like)}, ...), got {tuple(x.shape)}.")
    x = check_features(x)
    check_numbers(x, name)
    return x.to(like.dtype)
