"""Entropy-based adaptive binning: bins that follow a layer's activations while it trains."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.probe.base import Known, check_layer, of_codes
from logitkit.registry import part


@part(
    "ebab",
    "probe",
    title="Adaptive Estimators Show Information Compression in Deep Neural Networks",
    paper="arXiv:1902.09037",
    number=23,
    replaces="information_plane",
)
class EBAB:
    """Information of a layer in bins of equal counts: for activations of any range, such as ReLU and ELU, and
    for comparing them with each other.

    Equation: I(X; T) = H(T), I(T; Y) = H(T) - sum_y p(y) H(T | y), in bits, T the vector of bins of a row's
    units. The `bins` - 1 edges are quantiles, at equal counts, of the different values that all units take
    together; every unit has the same edges. A value on an edge belongs to the bin above it.

    Shapes: t (rows, *layer), y (rows,) integer labels or None; returns `Known(input, label)`. x is not looked
    at. A strictly increasing map of all values changes nothing.

    Defaults: 30 bins. Quantiles are of different values, so that the zeros of a ReLU count once.

    Raises: ValueError for fewer than 2 bins, wrong shapes or dtypes, NaN or infinite values.

    Source: Chelombiev, Houghton, O'Donnell, arXiv:1902.09037, entropy-based adaptive binning.

    Not for: layers so wide that all rows differ in some unit's bin: H(T) is then log2 of the rows.
    """

    def __init__(self, bins: int = 30) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}.")
        self.bins = bins

    def __call__(
        self, t: Float[Tensor, " rows *layer"], y: Int[Tensor, " rows"] | None = None, x: Tensor | None = None
    ) -> Known:
        t, y = check_layer(t, y)
        values = torch.unique(t)
        # The first value of every bin but the first, so that an edge is one of the values and maps with them.
        first = torch.arange(1, self.bins, device=t.device) * len(values) // self.bins
        edges = torch.unique(values[first])
        return of_codes(torch.bucketize(t.contiguous(), edges, right=True), y)
