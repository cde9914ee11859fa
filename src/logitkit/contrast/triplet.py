"""The triplet loss over all triplets of a batch, a reference among metric losses."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import all_triplets
from logitkit.registry import Real, part


@part(
    "triplet",
    "contrast",
    title="Triplet margin loss over all triplets",
    search_space={"margin": Real(0.01, 0.5, log=True)},
)
class TripletLoss(nn.Module):
    """Triplet loss: each row nearer to its class than to others, by a margin, over all triplets of a batch.

    Equation: the sum over anchors a, positives p and negatives n of max(0, d_ap - d_an + margin), over the
    number of terms above 0; d the Euclidean distance of embeddings of length 1.

    Shapes: embeddings (batch, d), labels (batch,) integers; returns a scalar, 0 where all triplets keep the
    margin. In O(batch^2 log batch) time, see `ops.all_triplets`.

    Defaults: margin 0.05, pytorch-metric-learning's.

    Raises: ValueError for a margin that is not finite, wrong shapes or dtypes, or an empty batch.

    Source: Schroff, Kalenichenko, Philbin, arXiv:1503.03832; Hermans, Beyer, Leibe, arXiv:1703.07737, the
    mean over non-zero terms.

    Not for: training a classifier by itself, as `SupConLoss`.
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        if not math.isfinite(margin):
            raise ValueError(f"margin must be finite, got {margin}.")
        self.margin = margin

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        return all_triplets(embeddings, labels, margin=self.margin)
