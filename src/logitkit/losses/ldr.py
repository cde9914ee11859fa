"""LDR-KL: the worst case over label distributions near the uniform one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import ClassificationLoss
from logitkit.ops import check_positive
from logitkit.registry import Real, part

NORM_MIN = 1e-12


def ldr_kl(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    lam: float | Float[Tensor, " batch"] = 1.0,
    margin: float = 0.0,
) -> Float[Tensor, " batch"]:
    """lam log((1/K) sum_k exp((f_k - f_y + margin [k != y]) / lam)) per row; see `LDRKL`."""
    y = target[:, None]
    gap = (logits + margin).scatter(-1, y, logits.gather(-1, y)) - logits.gather(-1, y)
    scale = lam[:, None] if isinstance(lam, Tensor) else lam
    return lam * (torch.logsumexp(gap / scale, dim=-1) - math.log(logits.shape[-1]))


def normalize_softplus(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """softplus(f) divided by its mean over the classes."""
    f = F.softplus(logits)
    return f / f.mean(dim=-1, keepdim=True).clamp(min=NORM_MIN)


@part(
    "ldr",
    "losses",
    title="Label Distributionally Robust Losses for Multi-class Classification",
    paper="arXiv:2112.14869",
    number=5,
    replaces="cross_entropy",
    search_space={"lam": Real(0.1, 30.0, log=True), "margin": Real(0.0, 2.0)},
)
class LDRKL(ClassificationLoss):
    """LDR-KL loss: slide between cross-entropy and a hinge, with scores of bounded size, for noisy labels.

    Equation: l = max_p sum_k p_k (f_k - f_y + c_k) - lam KL(p || 1/K), p over the simplex, which is
    lam log((1/K) sum_k exp((f_k - f_y + c_k) / lam)) with c_k = margin [k != y]. lam -> 0 is the
    Crammer-Singer hinge, lam = 1 with no margin is cross-entropy - log K, lam -> inf the mean margin loss.
    With `normalize`, f = softplus(logits) / mean_k softplus(logits).

    Shapes: logits (batch, K) real scores, target (batch,) integer labels; returns a scalar, or (batch,)
    with `reduction="none"`.

    Defaults: lam = 10 and margin = 0.1, what the authors' `experiment.py` runs (its grid for lam is {0.1, 1,
    10}; the class in their code has 1 and 2); normalised as there.

    Raises: ValueError for lam <= 0, margin < 0, wrong shapes or dtypes, NaN logits, labels out of range, an
    empty batch.

    Source: Zhu, Ying, Yang, ICML 2023, arXiv:2112.14869, the LDR-KL loss; normalisation from `LDRLoss_V1` in
    the authors' code.

    Not for: reading probabilities off softmax(logits), as `normalize` bounds the scores the loss sees;
    labels that are noisy to different degrees (see `aldr`).
    """

    def __init__(
        self,
        lam: float = 10.0,
        margin: float = 0.1,
        normalize: bool = True,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        check_positive(lam=lam)
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin}.")
        self.lam = lam
        self.margin = margin
        self.normalize = normalize

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        f = normalize_softplus(logits) if self.normalize else logits
        return ldr_kl(f, target, self.lam, self.margin)
