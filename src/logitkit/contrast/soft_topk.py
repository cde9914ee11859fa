"""The soft top-k loss: relevant labels are to be among the k best, whatever their order."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.contrast.base import RankingLoss
from logitkit.ops import check_positive, soft_topk_threshold
from logitkit.registry import Choice, Real, part


@part(
    "soft_topk",
    "contrast",
    title="Dual-Encoders for Extreme Multi-Label Classification: the soft top-k loss",
    paper="arXiv:2310.10636",
    number=10,
    companion_of="decoupled_softmax",
    replaces="multi_positive",
    tasks=("multilabel",),
    search_space={"k": Choice("positives", 5, 10), "alpha": Real(0.5, 10.0, log=True)},
)
class SoftTopK(RankingLoss):
    """Soft top-k: relevant labels among the first k, where recall at k counts and order does not.

    Equation: l = 1/|P| sum_{y in P} -log sigmoid(alpha (s_y + t)), P the row's relevant labels and t such
    that sum_j sigmoid(alpha (s_j + t)) = k over all labels.

    Shapes: scores (batch, labels), target a mask (batch, labels) of bool or 0 and 1, or whole-number lists
    (batch, most) filled up with -1; returns a scalar in nats, or (batch,) with `reduction="none"`. Rows
    without a relevant label count nothing.

    Defaults: k = "positives", as many as the row has, at most all labels but one; alpha = 1. The paper
    chooses k and alpha per data set.

    Raises: ValueError for a k that is not below the number of labels, an alpha not above 0, wrong shapes or
    dtypes, NaN scores, labels out of range, an empty batch.

    Source: Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon, ICLR 2024, arXiv:2310.10636, section 4.3.
    The authors' code divides by all rows, with a relevant label or not, and draws k of a row's relevant
    labels where there are more; here each counts.

    Not for: the first place (see `decoupled_softmax`).
    """

    def __init__(
        self,
        k: str | float = "positives",
        alpha: float = 1.0,
        *,
        reduction: str = "mean",
        weight: Float[Tensor, " labels"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, weight=weight)
        check_positive(alpha=alpha)
        if isinstance(k, str) and k != "positives":
            raise ValueError(f"k must be a number or 'positives', got {k!r}.")
        if not isinstance(k, str):
            check_positive(k=k)
        self.k, self.alpha = k, alpha

    def terms(
        self, scores: Float[Tensor, "batch labels"], positive: Bool[Tensor, "batch labels"]
    ) -> Float[Tensor, "batch labels"]:
        k = positive.sum(dim=1).clamp(1, scores.shape[1] - 1) if isinstance(self.k, str) else self.k
        threshold = soft_topk_threshold(scores, k, self.alpha)
        return -F.logsigmoid(self.alpha * (scores + threshold[:, None]))
