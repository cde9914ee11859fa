"""Cross-entropy: the reference arm of every comparison of losses."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import ClassificationLoss
from logitkit.registry import Real, part


def cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, " batch"]:
    """-(1 - s) log p_y - (s / K) sum_k log p_k per row, p = softmax(logits), s = `label_smoothing`."""
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)


@part(
    "cross_entropy",
    "losses",
    title="Cross-entropy with optional label smoothing",
    aliases=("ce",),
    search_space={"label_smoothing": Real(0.0, 0.2)},
)
class CrossEntropy(ClassificationLoss):
    """Cross-entropy, the default objective of classification and the arm to beat.

    Equation: l = -(1 - s) log p_y - (s / K) sum_k log p_k, with p = softmax(logits) over K classes and
    s = `label_smoothing`.

    Shapes: logits (batch, K) real scores, target (batch,) integer labels; returns a scalar in nats, or
    (batch,) with `reduction="none"`. With `weight`, every row counts its class's weight (torch instead
    spreads the weights inside the smoothed target; without smoothing the two agree).

    Defaults: s = 0, as `torch.nn.CrossEntropyLoss`.

    Raises: ValueError for wrong shapes or dtypes, NaN logits, labels out of range, an empty batch, or s
    outside [0, 1].

    Source: label smoothing from Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", arXiv:1512.00567, section 7.

    Not for: heavily mislabelled data (see `comp_sum`, `aldr`) or long tails, where its gradient follows
    the majority.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return cross_entropy(logits, target, self.label_smoothing)
