"""ALDR-KL: LDR-KL with a temperature of its own for every training example."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.losses.ldr import ldr_kl
from logitkit.ops import check_batch, check_positive, check_reduction, reduce, row_weights, values_visible
from logitkit.registry import Real, part

NORM_MIN = 1e-6


def update_lam(
    scores: Float[Tensor, "batch classes"], lam: Float[Tensor, " batch"], lam0: float, alpha: float
) -> Float[Tensor, " batch"]:
    """lam0 (1 - KL(softmax(scores / lam) || 1/K) / (alpha log K)): the less sure, the closer to lam0."""
    log_k = math.log(scores.shape[-1])
    log_p = torch.log_softmax(scores / lam[:, None], dim=-1)
    kl = (log_p.exp() * log_p).sum(dim=-1) + log_k
    return lam0 - lam0 * kl / (alpha * log_k)


def normalize_l1(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Logits divided by the mean of their absolute values over the classes."""
    return logits / logits.abs().mean(dim=-1, keepdim=True).clamp(min=NORM_MIN)


@part(
    "aldr",
    "losses",
    title="Label Distributionally Robust Losses for Multi-class Classification (adaptive)",
    paper="arXiv:2112.14869",
    number=5,
    companion_of="ldr",
    replaces="cross_entropy",
    needs=("ids",),
    search_space={
        "lam0": Real(0.1, 30.0, log=True),
        "alpha": Real(1.1, 10.0, log=True),
        "margin": Real(0.0, 2.0),
    },
    no_gradcheck="lam_i is set from the logits and held constant in the gradient",
)
class ALDRKL(nn.Module):
    """ALDR-KL loss: heavy label noise, when which labels are wrong differs from example to example.

    Equation: l_i = lam_i log((1/K) sum_k exp((f_k - f_y + c_k) / lam_i)) - (alpha log K / (2 lam0))
    (lam_i - lam0)^2, c_k = margin [k != y]. Each training visit first sets, without gradient,
    lam_i <- lam0 - lam0 KL(softmax(f / lam_i) || 1/K) / (alpha log K), which lies in
    [lam0 (1 - 1/alpha), lam0]. With `normalize`, f = logits / mean_k |logits|.

    Shapes: logits (batch, K) real scores, target (batch,) integer labels, ids (batch,) integers in
    [0, num_samples), the place of each example in the training set; returns a scalar, or (batch,) with
    `reduction="none"`. The buffer `lam` (num_samples,) is updated in training mode only.

    Defaults: lam0 = 10, alpha = 2 and margin = 0.1, what the authors' `experiment.py` runs (its grid for lam0
    is {0.1, 1, 10}; the class in their code has 1, 1 and 1). As in their code the update of lam_i leaves the
    margin out: it is exactly the stationarity of l_i in lam_i at margin 0.

    Raises: ValueError for num_samples < 1, lam0 <= 0, alpha <= 1 (lam_i could reach 0), margin < 0, ids out
    of range or of another shape or dtype, wrong shapes or dtypes, NaN logits, labels out of range, an
    empty batch.

    Source: Zhu, Ying, Yang, ICML 2023, arXiv:2112.14869, the ALDR-KL loss; normalisation and update from
    `ALDRLoss_V1` in the authors' code.

    Not for: data seen once, where lam_i never adapts; a last layer initialised to zero with `normalize`.
    """

    weight: Tensor | None
    lam: Tensor

    def __init__(
        self,
        num_samples: int,
        lam0: float = 10.0,
        alpha: float = 2.0,
        margin: float = 0.1,
        normalize: bool = True,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_positive(num_samples=num_samples, lam0=lam0)
        if not alpha > 1:
            raise ValueError(f"alpha must be greater than 1, got {alpha}.")
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin}.")
        self.lam0 = lam0
        self.alpha = alpha
        self.margin = margin
        self.normalize = normalize
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)
        self.register_buffer("lam", torch.full((num_samples,), float(lam0)))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(logits, target, self.ignore_index)
        ids = self._check_ids(ids, target.shape[0])
        safe, counts = row_weights(target, self.weight, self.ignore_index, logits)
        f = normalize_l1(logits) if self.normalize else logits
        lam = self.lam[ids].to(f.dtype)
        if self.training:
            lam = torch.where(
                target != self.ignore_index, update_lam(f.detach(), lam, self.lam0, self.alpha), lam
            )
            self.lam[ids] = lam.to(self.lam.dtype)
        penalty = self.alpha * math.log(logits.shape[1]) / (2 * self.lam0) * (lam - self.lam0) ** 2
        return reduce(ldr_kl(f, safe, lam, self.margin) - penalty, self.reduction, counts)

    def _check_ids(self, ids: Tensor, batch: int) -> Int[Tensor, " batch"]:
        if ids.shape != (batch,):
            raise ValueError(f"ids must have shape ({batch},) to match the logits, got {tuple(ids.shape)}.")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must hold integers, got {ids.dtype}.")
        if values_visible(ids):
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= len(self.lam):
                bad = low if low < 0 else high
                raise ValueError(f"ids hold {bad}; expected ids in [0, {len(self.lam)}).")
        return ids.long()
