"""Cut cross-entropy: the cross-entropy of a last linear layer without the matrix of its logits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_reduction, linear_cross_entropy, values_visible
from logitkit.registry import part


def filter_of(features: Float[Tensor, "batch d"]) -> float:
    """The resolution of the dtype that products of `features` run in, over 32."""
    device, dtype = features.device.type, features.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return torch.finfo(dtype).eps / 32


@part(
    "cut_cross_entropy",
    "losses",
    title="Cut Your Losses in Large-Vocabulary Language Models",
    paper="arXiv:2411.09009",
    number=65,
    replaces="cross_entropy",
    aliases=("cce",),
    needs=("weight", "bias"),
    no_compile="it is kept from the compiler, which would make the matrix of logits",
)
class CutCrossEntropy(nn.Module):
    """Cut cross-entropy: classes or words by the ten thousand, whose logits would fill the memory.

    Equation: l = log sum_k e^{z_k} - z_y, z = W x + b, by blocks of the logits that are made, used, and made
    again for the gradient. The softmax entries of a block that are below `filter_eps` for all its tokens are
    left out of the gradients' products, the label's never.

    Shapes: features (batch, d), target (batch,) integer labels, and of the last layer weight (classes, d) and
    bias (classes,) or None; returns a scalar in nats, or (batch,) with `reduction="none"`.

    Defaults: filter_eps = "dtype", the resolution of the features' dtype (autocast's inside autocast) over 32
    as in the authors' code: 2^-12 in bfloat16, 2^-28 in float32. "auto" leaves out only what is below the
    rounding of the features' gradient, None nothing; `ops.linear_cross_entropy`, which does the work, has
    more options. No label smoothing, no softcap.

    Raises: ValueError for wrong shapes or dtypes, features that are not finite, labels out of range, an empty
    batch.

    Source: Wijmans, Huval, Hertzberg, Koltun, Krähenbühl, ICLR 2025, arXiv:2411.09009, sections 4.1 to 4.3.

    Not for: a few hundred classes, where the logits are small and plain cross-entropy is faster; training
    from scratch with a filter of 2^-12, below which a new model's whole softmax lies (None or "auto" is for
    that). For a Hugging Face language model see `integrations.transformers.patch_loss`.
    """

    def __init__(
        self,
        filter_eps: float | str | None = "dtype",
        softcap: float | None = None,
        label_smoothing: float = 0.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.filter_eps, self.softcap, self.label_smoothing = filter_eps, softcap, label_smoothing
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(
        self,
        features: Float[Tensor, "batch d"],
        target: Int[Tensor, " batch"],
        weight: Float[Tensor, "classes d"],
        bias: Float[Tensor, " classes"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        check_features(features, weight.shape[1])
        if values_visible(features) and not bool(features.detach().isfinite().all()):
            raise ValueError("features hold NaN or infinity; expected numbers.")
        filter_eps = self.filter_eps
        if filter_eps == "dtype":
            filter_eps = filter_of(features)
        target = check_labels(target, len(features), len(weight), self.ignore_index)
        return linear_cross_entropy(
            features,
            weight,
            target,
            bias,
            label_smoothing=self.label_smoothing,
            softcap=self.softcap,
            filter_eps=filter_eps,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
