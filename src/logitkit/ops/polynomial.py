"""Functions made of sums and products only: 1 / z, 1 / sqrt(z), and any function on an interval.

What computes on encrypted numbers has nothing else. Every function is good on an interval that it is told,
and refuses numbers outside, where polynomials run away.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import chebyshev
from torch import Tensor, nn

from logitkit.ops.checks import values_visible

__all__ = ["Polynomial", "PolynomialInverse", "PolynomialRsqrt"]


class _OnInterval(nn.Module):
    """Base: checks that inputs lie in [low, high]. depth: how many products follow one another."""

    depth: int

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"expected finite low < high, got {low} and {high}.")
        self.low, self.high = low, high

    def check(self, z: Tensor) -> Tensor:
        """Return `z`. Raises ValueError for a number outside [low, high], both rounded to the dtype of `z`,
        where numbers may be looked at."""
        if values_visible(z):
            least, most = (x.item() for x in z.detach().aminmax())
            low, high = z.new_tensor([self.low, self.high]).tolist()
            if not low <= least <= most <= high:
                raise ValueError(
                    f"{type(self).__name__} holds on [{self.low:.4g}, {self.high:.4g}], got numbers from "
                    f"{least:.4g} to {most:.4g}."
                )
        return z

    def extra_repr(self) -> str:
        return f"{self.low:.4g}, {self.high:.4g}, depth={self.depth}"


class PolynomialInverse(_OnInterval):
    """1 / z on [low, high], 0 < low, by y <- y (2 - z y).

    The start is the line with the smallest relative error e_0 = 1 - z y_0; after k steps the relative error
    is e_0^(2^k) exactly. steps: as many as bring it below `tolerance`, by default.
    """

    def __init__(self, low: float, high: float, steps: int | None = None, tolerance: float = 1e-6) -> None:
        super().__init__(low, high)
        if low <= 0:
            raise ValueError(f"an inverse needs low > 0, got {low}.")
        # 1 - z y_0 is the Chebyshev polynomial of degree 2 on the interval, scaled to 1 at z = 0.
        slope, middle = 2 / (high - low), -(high + low) / (high - low)
        scale = 2 * middle**2 - 1
        self.line = -4 * slope * middle / scale, -2 * slope**2 / scale
        needed = math.log(tolerance) / -math.log(scale)
        self.steps = max(0, math.ceil(math.log2(max(needed, 1)))) if steps is None else steps
        self.depth = 1 + 2 * self.steps

    def start(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """y_0, linear in z."""
        return self.line[0] + self.line[1] * z

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        y = self.start(self.check(z))
        for _ in range(self.steps):
            y = y * (2 - z * y)
        return y


class PolynomialRsqrt(_OnInterval):
    """1 / sqrt(z) on [low, high], 0 < low, by y <- y (3 - z y^2) / 2 from a line.

    steps: as many as bring the relative error below `tolerance`, by default.
    """

    # y_0 = c (1 - 3/4 z / high) with z y_0^2 at most 2.5; the steps need less than 3.
    TILT, MOST = 0.75, 2.5

    def __init__(self, low: float, high: float, steps: int | None = None, tolerance: float = 1e-6) -> None:
        super().__init__(low, high)
        if low <= 0:
            raise ValueError(f"an inverse square root needs low > 0, got {low}.")
        top = math.sqrt(self.MOST * 27 / 4 * self.TILT / high)
        self.line = top, -top * self.TILT / high
        self.steps = self._needed(tolerance) if steps is None else steps
        self.depth = 1 + 3 * self.steps

    def _needed(self, tolerance: float) -> int:
        z = np.geomspace(self.low, self.high, 4096)
        y = self.line[0] + self.line[1] * z
        steps = 0
        while np.abs(y * np.sqrt(z) - 1).max() > tolerance:
            y = y * (1.5 - 0.5 * z * y * y)
            steps += 1
        return steps

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        y = self.line[0] + self.line[1] * self.check(z)
        for _ in range(self.steps):
            y = y * (1.5 - 0.5 * z * (y * y))
        return y


class Polynomial(_OnInterval):
    """A function on [low, high] as its Chebyshev interpolant, which is close to the best polynomial.

    degree: the least of 7, 15, 31, 63 and 127 whose error is below `tolerance`, by default. `error` is the
    largest error on the interval.
    """

    DEGREES = 7, 15, 31, 63, 127

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        low: float,
        high: float,
        degree: int | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__(low, high)

        def on_unit(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return function(torch.from_numpy(low + (high - low) * (x + 1) / 2)).numpy()

        grid = np.linspace(-1, 1, 8192)
        for n in self.DEGREES if degree is None else (degree,):
            nodes = chebyshev.chebpts1(n + 1)
            found = chebyshev.chebfit(nodes, on_unit(nodes), n)
            self.error = float(np.abs(chebyshev.chebval(grid, found) - on_unit(grid)).max())
            if self.error <= tolerance:
                break
        self.coefficients: list[float] = found.tolist()
        self.depth = 2 + math.ceil(math.log2(max(n, 1)))

    def forward(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        wide = 2 / (self.high - self.low)
        x = wide * self.check(z) - (1 + wide * self.low)
        # T_{a+b} = 2 T_a T_b - T_{a-b}: as few products in a row as there can be.
        terms = [torch.ones_like(x), x]
        total = self.coefficients[0] + self.coefficients[1] * x
        for n in range(2, len(self.coefficients)):
            a, b = (n + 1) // 2, n // 2
            terms.append(2 * terms[a] * terms[b] - terms[a - b])
            total = total + self.coefficients[n] * terms[n]
        return total
