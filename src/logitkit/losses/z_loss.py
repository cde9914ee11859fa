"""The Z-loss: a classification loss that ignores the shift and the scale of the logits."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import ClassificationLoss
from logitkit.ops import check_positive
from logitkit.registry import Real, part

SIGMA_MIN = 1e-6


def z_loss(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], a: float = 1.0, b: float = 0.0
) -> Float[Tensor, " batch"]:
    """softplus(a (b - z)) / a per row, z the label's logit standardised over the classes; see `ZLoss`."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    sigma = centred.square().mean(dim=-1).clamp(min=SIGMA_MIN**2).sqrt()
    z = centred.gather(-1, target[:, None])[:, 0] / sigma
    return -F.logsigmoid(a * (z - b)) / a


@part(
    "z_loss",
    "losses",
    title="The Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family",
    paper="arXiv:1604.08859",
    number=12,
    replaces="cross_entropy",
    aliases=("z",),
    search_space={"a": Real(0.1, 10.0, log=True), "b": Real(0.0, 10.0)},
)
class ZLoss(ClassificationLoss):
    """Z-loss: many classes and a ranking score such as top-k, where only the order of the logits counts.

    Equation: l = softplus(a (b - z)) / a, z = (o_y - mu) / sigma, with mu and sigma the mean and standard
    deviation of the logits o over the K classes. L(k o + t) = L(o) for k > 0 and any t.

    Shapes: logits (batch, K) real scores, target (batch,) integer labels; returns a scalar, or (batch,)
    with `reduction="none"`.

    Defaults: sharpness a = 1 and aim b = 0, which the authors' code uses; the paper tunes both. z cannot
    exceed sqrt(K - 1), so a larger b is never reached. sigma is held above 1e-6.

    Raises: ValueError for a <= 0, a b that is not finite, wrong shapes or dtypes, NaN logits, labels out of
    range, an empty batch.

    Source: de Brebisson, Vincent, arXiv:1604.08859, the definition of the Z-loss.

    Not for: two classes, where z is only the sign of the margin and the gradient is zero; probabilities,
    since softmax of logits of arbitrary scale is not calibrated; a last layer initialised to zero, where
    the gradient grows as 1/sigma.
    """

    def __init__(
        self,
        a: float = 1.0,
        b: float = 0.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        check_positive(a=a)
        if not abs(b) < float("inf"):
            raise ValueError(f"b must be finite, got {b}.")
        self.a = a
        self.b = b

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return z_loss(logits, target, self.a, self.b)
