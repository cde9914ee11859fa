"""The normalised temperature-scaled cross-entropy of positive pairs, what metric losses are compared with."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_positive, labelled_nt_xent
from logitkit.registry import Real, part


@part(
    "nt_xent",
    "contrast",
    title="Normalised temperature-scaled cross-entropy (NT-Xent)",
    aliases=("ntxent", "n_pairs"),
    search_space={"temperature": Real(0.02, 0.5, log=True)},
)
class NTXentLoss(nn.Module):
    """NT-Xent with labels: every pair of embeddings of a class against the rows of other classes, each pair
    alike.

    Equation: mean_{i, p in P_i} -log( exp(s_ip) / (exp(s_ip) + sum_{n: y_n != y_i} exp(s_in)) ), s = cosine /
    temperature, P_i the other rows of i's class. Positives do not compete with each other, as they do in
    `supcon`, and a class counts with the square of its rows in the batch.

    Shapes: embeddings (batch, d), labels (batch,) integers; returns a scalar, 0 if no row has another of its
    class. In O(batch) memory, see `ops.labelled_nt_xent`. Two views of each example, labelled by the example,
    give SimCLR's loss, which is `ops.nt_xent`.

    Defaults: temperature 0.07, as pytorch-metric-learning's `NTXentLoss`, whose values it has.

    Raises: ValueError for a temperature that is not positive, wrong shapes or dtypes, or an empty batch.

    Source: Sohn, NeurIPS 2016; Chen, Kornblith, Norouzi, Hinton, arXiv:2002.05709.

    Not for: training a classifier by itself: the last layer learns nothing. Add it to a loss
    (`regularize=0.5*nt_xent`), use `head=naive_bayes`, or judge embeddings (`+task=retrieval`).
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self, embeddings: Float[Tensor, "batch d"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        return labelled_nt_xent(embeddings, labels, temperature=self.temperature)
