"""Softmax: the reference arm of every comparison of normalisers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from logitkit import ops
from logitkit.ops import check_positive
from logitkit.registry import Real, part
from logitkit.softmax.base import Normalizer, check_scores


def softmax(x: Float[Tensor, "..."], dim: int = -1, temperature: float = 1.0) -> Float[Tensor, "..."]:
    """exp(x_i / T) / sum_j exp(x_j / T) along `dim`; see `Softmax`."""
    return ops.softmax(check_scores(x, dim) / temperature, dim).to(x.dtype)


@part(
    "softmax",
    "softmax",
    title="Softmax with temperature",
    search_space={"temperature": Real(0.25, 4.0, log=True)},
)
class Softmax(Normalizer):
    """Softmax, the default map from scores to weights and the arm to beat.

    Equation: p_i = exp(x_i / T) / sum_j exp(x_j / T), T = `temperature`.

    Shapes: x of any shape, weights of the same, summing to 1 along `dim`. Half-precision scores are computed
    in float32; weights come back in the scores' dtype, `log` in float32.

    Defaults: T = 1 on the last axis, as `torch.softmax`.

    Raises: ValueError for a temperature that is not positive, scores that are not floating point, empty or
    NaN, or a missing axis.

    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990,
    equation 2; the temperature from Hinton, Vinyals, Dean, arXiv:1503.02531, equation 1.

    Not for: weights that should reach exactly zero, or training far beyond separation in low precision (see
    `stablemax`).
    """

    def __init__(self, dim: int = -1, temperature: float = 1.0) -> None:
        super().__init__(dim)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def log(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p, in at least float32."""
        return ops.log_softmax(check_scores(x, self.dim) / self.temperature, self.dim)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return softmax(x, self.dim, self.temperature)
