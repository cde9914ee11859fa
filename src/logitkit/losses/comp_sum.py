"""The comp-sum family: generalised cross-entropy, MAE, logistic and sum-exponential in one parameter."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit import ops
from logitkit.losses.base import ClassificationLoss
from logitkit.registry import Real, part


def comp_sum(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], tau: float = 1.0
) -> Float[Tensor, " batch"]:
    """Phi_tau(u) per row, u = sum_{k != y} exp(h_k - h_y); see `CompSum`."""
    log_p = F.log_softmax(logits, dim=-1).gather(-1, target[:, None])[:, 0]
    return ops.comp_sum(log_p, tau)


@part(
    "comp_sum",
    "losses",
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications",
    paper="arXiv:2304.07288",
    number=2,
    replaces="cross_entropy",
    search_space={"tau": Real(0.5, 2.0)},
)
class CompSum(ClassificationLoss):
    """Comp-sum loss: slide from cross-entropy (tau = 1) to MAE (tau = 2) when labels are noisy.

    Equation: l = Phi_tau(u), u = sum_{k != y} exp(h_k - h_y) = 1/p_y - 1, with
    Phi_tau(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau) and Phi_1(u) = log(1 + u). So tau = 0 is the
    sum-exponential loss, 1 the logistic (cross-entropy), 1 < tau < 2 generalised cross-entropy with
    q = tau - 1, that is (1 - p^q) / q, and 2 the mean absolute error 1 - p.

    Shapes: logits (batch, classes) real scores, target (batch,) integer labels; returns a scalar, or
    (batch,) with `reduction="none"`.

    Defaults: tau = 1, the paper's logistic member; 1.7 is generalised cross-entropy's usual q = 0.7.

    Raises: ValueError for tau < 0, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Mao, Mohri, Zhong, ICML 2023, arXiv:2304.07288, equation 5.

    Not for: tau near 2 with many classes or from scratch, where gradients vanish on examples the model
    still has wrong; tau < 1, which grows exponentially with the margin, on noisy labels.
    """

    def __init__(
        self,
        tau: float = 1.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if not tau >= 0:
            raise ValueError(f"tau must be at least 0, got {tau}.")
        self.tau = tau

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return comp_sum(logits, target, self.tau)
