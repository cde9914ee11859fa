"""Focal loss: cross-entropy that turns away from examples the model already has right."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import ClassificationLoss
from logitkit.ops import log_odds_against
from logitkit.registry import Real, part


def focal(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], gamma: float = 2.0
) -> Float[Tensor, " batch"]:
    """-(1 - p_y)^gamma log p_y per row, p = softmax(logits)."""
    u = log_odds_against(logits, target)
    return -(gamma * F.logsigmoid(u)).exp() * F.logsigmoid(-u)


@part(
    "focal",
    "losses",
    title="Focal loss",
    replaces="cross_entropy",
    search_space={"gamma": Real(0.5, 5.0)},
)
class Focal(ClassificationLoss):
    """Focal loss: when easy examples are so many that they drown the hard ones.

    Equation: l = -(1 - p_y)^gamma log p_y, p = softmax(logits).

    Shapes: logits (batch, classes) real scores, target (batch,) integer labels; returns a scalar in nats,
    or (batch,) with `reduction="none"`. `weight` is the paper's alpha, one number per class.

    Defaults: gamma = 2, the paper's best; gamma = 0 is cross-entropy.

    Raises: ValueError for gamma < 0, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", arXiv:1708.02002,
    equation 4, with softmax for the sigmoid.

    Not for: noisy labels, which look hard forever and so get the weight; probabilities that must match
    frequencies, as its minimiser is not the conditional distribution.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}.")
        self.gamma = gamma

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return focal(logits, target, self.gamma)
