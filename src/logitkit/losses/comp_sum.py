"""The comp-sum family: generalised cross-entropy, MAE, logistic and sum-exponential in one parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


@dataclass(frozen=True)
class CompSumTransform:
    """T with T(excess 0-1 risk) <= excess comp-sum risk, for `classes` classes and any distribution.

    With s = 2 - tau and A = (((1+b)^(1/s) + (1-b)^(1/s)) / 2)^s, T(b) is 2^(1-tau) (1 - A) / (1 - tau) for
    tau < 1; ((1+b) log(1+b) + (1-b) log(1-b)) / 2 for tau = 1; (A - 1) / ((tau - 1) classes^(tau-1)) for
    1 < tau < 2; b / ((tau - 1) classes^(tau-1)) from 2 on (the paper's theorem on H-consistency bounds).
    """

    tau: float
    classes: int

    def __call__(self, b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """T(b), b in [0, 1]."""
        tau, n = self.tau, self.classes
        if tau == 1:
            return (torch.xlogy(1 + b, 1 + b) + torch.xlogy(1 - b, 1 - b)) / 2
        if tau >= 2:
            return b / ((tau - 1) * n ** (tau - 1))
        s = 2 - tau
        a = (((1 + b) ** (1 / s) + (1 - b) ** (1 / s)) / 2) ** s
        return 2 ** -(tau - 1) * (1 - a) / (1 - tau) if tau < 1 else (a - 1) / ((tau - 1) * n ** (tau - 1))

    def inverse(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The b in [0, 1] with T(b) = t, by bisection; 1 where t exceeds T(1): what a surrogate's excess
        risk t guarantees of the excess 0-1 risk."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            mid = (low + high) / 2
            below = self(mid) < t
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return high
