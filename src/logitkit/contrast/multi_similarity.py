"""The multi-similarity loss, a reference among metric losses."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_positive, multi_similarity
from logitkit.registry import Real, part


@part(
    "multi_similarity",
    "contrast",
    title="Multi-similarity loss",
    search_space={"alpha": Real(0.5, 10.0, log=True), "beta": Real(10.0, 100.0, log=True)},
)
class MultiSimilarityLoss(nn.Module):
    """Multi-similarity loss: pairs weigh by how far they are on the wrong side of a similarity.

    Equation: mean_i log(1 + sum_p exp(-alpha (s_ip - base))) / alpha + log(1 + sum_n exp(beta (s_in - base)))
    / beta, s the cosine, p the other rows of i's class and n those of others.

    Shapes: embeddings (batch, d), labels (batch,) integers; returns a scalar. In O(batch) memory, see
    `ops.multi_similarity`.

    Defaults: alpha = 2, beta = 50, base = 0.5, pytorch-metric-learning's; without mining.

    Raises: ValueError for an alpha or beta that is not positive, wrong shapes or dtypes, or an empty batch.

    Source: Wang, Han, Huang, Dong, Scott, CVPR 2019, arXiv:1904.06627, equation 16.

    Not for: training a classifier by itself, as `SupConLoss`.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> None:
        super().__init__()
        check_positive(alpha=alpha, beta=beta)
        self.alpha, self.beta, self.base = alpha, beta, base

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        return multi_similarity(embeddings, labels, alpha=self.alpha, beta=self.beta, base=self.base)
