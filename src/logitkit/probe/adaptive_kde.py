"""The adaptive kernel density estimate: noise that grows with a layer's activations."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_positive
from logitkit.probe.base import Known, check_layer
from logitkit.registry import part

CHUNK = 1024  # rows whose distances to all others are held at once


@part(
    "adaptive_kde",
    "probe",
    title="Adaptive Estimators Show Information Compression in Deep Neural Networks",
    paper="arXiv:1902.09037",
    number=23,
    companion_of="ebab",
    replaces="information_plane",
    aliases=("akde",),
)
class AdaptiveKDE:
    """Information of a layer as if Gaussian noise were added to it, in proportion to its activations: for
    layers too wide for bins.

    Equation: I(X; T) = -(1/n) sum_i log2 (1/n) sum_j exp(-|t_i - t_j|^2 / (2 v)), an upper bound; with 8 v in
    the place of 2 v a lower one. I(T; Y) is that minus sum_y p(y) times the same of the rows of class y. v =
    v0 max |t|.

    Shapes: t (rows, *layer), y (rows,) integer labels or None; returns `Known(input, label)` in bits. x is
    not looked at. Memory is rows times 1,024 numbers.

    Defaults: v0 = 1e-3 and the upper bound.

    Raises: ValueError for a v0 that is not positive, another bound, wrong shapes or dtypes, NaN or infinite
    values. A layer of zeros knows nothing, 0 bits.

    Source: Chelombiev, Houghton, O'Donnell, arXiv:1902.09037, adaptive kernel density estimation; the
    bounds are those of Kolchinsky, Tracey, arXiv:1706.02419. That the variance, not its
    root, is in proportion to the largest activation is our reading.

    Not for: bits that are compared across v0.
    """

    def __init__(self, v0: float = 1e-3, bound: Literal["upper", "lower"] = "upper") -> None:
        check_positive(v0=v0)
        if bound not in ("upper", "lower"):
            raise ValueError(f"bound must be 'upper' or 'lower', got {bound!r}.")
        self.v0, self.bound = v0, bound

    def __call__(
        self, t: Float[Tensor, " rows *layer"], y: Int[Tensor, " rows"] | None = None, x: Tensor | None = None
    ) -> Known:
        t, y = check_layer(t, y)
        t = t.double()
        largest = float(t.abs().amax())
        if largest == 0:
            return Known(0.0, None if y is None else 0.0)
        width = (2 if self.bound == "upper" else 8) * self.v0 * largest
        bits = _bits(t, width)
        if y is None:
            return Known(bits, None)
        share = torch.bincount(y).double() / len(y)
        within = sum(float(p) * _bits(t[y == k], width) for k, p in enumerate(share) if p > 0)
        return Known(bits, bits - within)


def _bits(t: Float[Tensor, "rows d"], width: float) -> float:
    """-mean_i log2 mean_j exp(-|t_i - t_j|^2 / width)."""
    near = [
        torch.logsumexp(-torch.cdist(rows, t, compute_mode=_EXACT).square() / width, dim=1)
        for rows in t.split(CHUNK)
    ]
    return -float(torch.cat(near).mean() - math.log(len(t))) / math.log(2)


_EXACT = "donot_use_mm_for_euclid_dist"
