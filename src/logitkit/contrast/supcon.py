"""The supervised contrastive loss, what metric losses are compared with."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_positive, supervised_contrastive
from logitkit.registry import Real, part


@part(
    "supcon",
    "contrast",
    title="Supervised contrastive loss",
    aliases=("supervised_contrastive",),
    search_space={"temperature": Real(0.02, 0.5, log=True)},
)
class SupConLoss(nn.Module):
    """Supervised contrastive loss: embeddings of a class together, and apart from all others in the batch.

    Equation: mean_i -1/|P_i| sum_{p in P_i} log(exp(s_ip) / sum_{j != i} exp(s_ij)), s = cosine /
    temperature, P_i the other rows of i's class.

    Shapes: embeddings (batch, d), labels (batch,) integers; returns a scalar, 0 if no row has another of its
    class. In O(batch) memory, see `ops.supervised_contrastive`.

    Defaults: temperature 0.1, the paper's.

    Raises: ValueError for a temperature that is not positive, wrong shapes or dtypes, or an empty batch.

    Source: Khosla et al., arXiv:2004.11362, equation 2.

    Not for: training a classifier by itself: the last layer learns nothing. Add it to a loss
    (`regularize=0.5*supcon`), use `head=naive_bayes`, or judge embeddings (`+task=retrieval`).
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        return supervised_contrastive(embeddings, labels, temperature=self.temperature)
