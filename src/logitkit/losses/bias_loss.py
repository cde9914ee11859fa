"""Bias loss: cross-entropy that trusts examples whose features are diverse."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_batch, check_numbers, check_reduction, reduce, row_weights
from logitkit.registry import Real, part


def feature_diversity(features: Float[Tensor, " batch *map"]) -> Float[Tensor, " batch"]:
    """Variance over all entries of each example's feature map, without gradient."""
    flat = features.detach().flatten(1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32)).var(dim=1)


@part(
    "bias_loss",
    "losses",
    title="Bias Loss for Mobile Neural Networks",
    paper="arXiv:2107.11170",
    number=19,
    replaces="cross_entropy",
    aliases=("bias",),
    needs=("features",),
    search_space={"alpha": Real(0.05, 1.0), "beta": Real(0.05, 1.0)},
)
class BiasLoss(nn.Module):
    """Bias loss: compact networks, whose guesses on images with few distinct features mislead training.

    Equation: l_i = z(v_i) CE_i, v_i = (var_i - min var) / (max var - min var), var_i the variance of all
    entries of example i's last feature map before pooling, held constant in the gradient; v = 0 where all
    are equal. `form="code"`: z = exp(beta v) - 1 + alpha; `form="paper"`: z = exp(alpha v) - beta.
    `norm="local"` takes the minimum over the batch, `norm="global"` over all training batches so far (the
    maximum and the range stay the batch's, so v may exceed 1).

    Shapes: logits (batch, classes) real scores, target (batch,) integer labels, features (batch, ...) with
    at least 2 entries each; returns a scalar, or (batch,) with `reduction="none"`. The buffer `minimum` is
    updated in training mode only.

    Defaults: alpha = beta = 0.3 and the weight of the authors' code, 0.3 at v = 0 to 0.65 at v = 1. `norm` is
    the paper's "local", which is bounded; their code's "global" can explode once the batch's range is small.

    Raises: ValueError for an unknown form or norm, weights that could be negative, features of another batch
    size, dtype or with NaN, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Abrahamyan, Ziatchin, Chen, Deligiannis, ICCV 2021, arXiv:2107.11170, section 3; `form="code"`
    from the authors' `bias_loss.py`.

    Not for: comparing loss values between batches, whose scale depends on the batch; large networks.
    """

    weight: Tensor | None
    minimum: Tensor

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.3,
        form: Literal["code", "paper"] = "code",
        norm: Literal["local", "global"] = "local",
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if form not in ("code", "paper"):
            raise ValueError(f"form must be 'code' or 'paper', got {form!r}.")
        if norm not in ("local", "global"):
            raise ValueError(f"norm must be 'local' or 'global', got {norm!r}.")
        if not (alpha >= 0 and beta >= 0 and (form == "code" or beta <= 1)):
            raise ValueError(
                f"alpha and beta must be at least 0 (beta at most 1 in form 'paper'), got {alpha} and {beta}."
            )
        self.alpha = alpha
        self.beta = beta
        self.form = form
        self.norm = norm
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)
        self.register_buffer("minimum", torch.tensor(torch.inf))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        features: Float[Tensor, " batch *map"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(logits, target, self.ignore_index)
        check_feature_map(features, target.shape[0])
        safe, counts = row_weights(target, self.weight, self.ignore_index, logits)
        v = self.normalize(feature_diversity(features), target != self.ignore_index)
        z = self.example_weight(v).to(logits.dtype)
        return reduce(z * F.cross_entropy(logits, safe, reduction="none"), self.reduction, counts)

    def normalize(
        self, diversity: Float[Tensor, " batch"], kept: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        """v: diversity moved to 0 at the minimum and divided by the batch's range, over the rows `kept`."""
        seen = kept if kept is not None else torch.ones_like(diversity, dtype=torch.bool)
        low = diversity.masked_fill(~seen, torch.inf).amin()
        span = diversity.masked_fill(~seen, -torch.inf).amax() - low
        if self.norm == "global":
            low = torch.minimum(low, self.minimum.to(low.dtype))
            if self.training:
                self.minimum.copy_(low)
        v = (diversity - low) / torch.where(span > 0, span, torch.ones_like(span))
        return torch.where((span > 0) & seen, v, torch.zeros_like(v))

    def example_weight(self, v: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """z(v)."""
        if self.form == "code":
            return torch.expm1(self.beta * v) + self.alpha
        return torch.exp(self.alpha * v) - self.beta


def check_feature_map(features: Tensor, batch: int) -> None:
    """Raise ValueError unless `features` is a floating (batch, ...) map of at least 2 numbers, none NaN."""
    if features.ndim < 2 or features.shape[0] != batch or features.shape[1:].numel() < 2:
        raise ValueError(
            f"features must have shape ({batch}, ...), at least 2 numbers a row, got {tuple(features.shape)}."
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}.")
    check_numbers(features, "x")
