"""Binary cross-entropy: the reference arm of multi-label problems."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import Labels, check_multilabel, check_reduction, reduce
from logitkit.registry import part


@part(
    "binary_cross_entropy",
    "losses",
    title="Binary cross-entropy, a decision per label",
    aliases=("bce",),
    tasks=("multilabel",),
)
class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy, the default objective where an example may have any number of labels.

    Equation: l = sum_k -[t_k log sigmoid(s_k) + (1 - t_k) log sigmoid(-s_k)].

    Shapes: scores (batch, labels), target a mask (batch, labels) of bool or 0 and 1, or whole-number lists
    (batch, most) filled up with -1; returns a scalar in nats, or (batch,) with `reduction="none"`.

    Defaults: the mean over examples of the sum over labels; `torch.nn.BCEWithLogitsLoss` also divides by the
    number of labels, which makes the gradient of each label vanish where there are many.

    Raises: ValueError for wrong shapes or dtypes, NaN scores, labels out of range, an empty batch.

    Source: `torch.nn.BCEWithLogitsLoss`.

    Not for: labels that exclude each other (see `cross_entropy`), or rankings of very many labels, where
    the negatives drown the positives (see `decoupled_softmax`).
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def forward(
        self, scores: Float[Tensor, "batch labels"], target: Labels
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        scores, positive = check_multilabel(scores, target)
        terms = F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype), reduction="none")
        return reduce(terms.sum(dim=1), self.reduction)
