"""Soft tokens as a last layer: vectors of numbers through a codebook."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_logits, check_positive, check_reduction, values_visible
from logitkit.ops.codebook import Codebook, soft_token
from logitkit.registry import Real, Whole, part

DECAY = 0.99
"""The share of its past that a code keeps in every batch."""


@part(
    "soft_token",
    "heads",
    title="All in Tokens: Unifying Output Space of Visual Tasks via Soft Token",
    paper="arXiv:2301.02229",
    number=144,
    companion_of="soft_token",
    tasks=("depth",),
    search_space={"codes": Whole(16, 256, log=True), "temperature": Real(0.3, 3.0, log=True)},
)
class SoftTokenHead(nn.Linear):
    """All numbers of a small patch at once, as a mixture of patches in a codebook that is trained by
    classification: for dense outputs such as depth maps, where a patch has few likely shapes and the mean of
    its numbers hides the edges.

    Equation: l = W x + b, p = softmax(l / T), prediction = sum_k p_k E_k, E the codebook; with `hard` the
    code of the largest logit. loss = cross-entropy of l to the code closest to the target. In training mode
    the loss first moves the codes, each toward the mean of the different targets closest to it. Unknown
    numbers, which are NaN, have no influence on which code is closest, and are taken from it for the mean.

    Shapes: features (batch, in_features) -> logits (batch, codes). `loss(logits, target)` takes real targets
    (batch, pixels), of which at least one in each row is known, and returns nats; `predict(logits)` ->
    (batch, pixels) in the targets' units, which are best standardised.

    Defaults: 128 codes, as the authors take for masks; T = 1, where they decode with 1.25 and find that it
    matters little. Codes keep 0.99 of their past per batch, as theirs do.

    Raises: ValueError for sizes below 1, fewer than 2 codes, a temperature that is not positive, wrong shapes
    or dtypes, NaN in features or logits, a row without a known target, or an empty batch.

    Source: Ning et al., ICCV 2023, arXiv:2301.02229, "Soft token"; the part on its own is
    `bottleneck.SoftToken`. The authors' codes are of a convolutional VQ-VAE trained beforehand, and read by
    a transformer token by token; here they are the patches themselves, and every position is told on its own.

    Not for: single numbers, where `histogram` knows their order; patches so large that none is like another.
    """

    def __init__(
        self, in_features: int, pixels: int, codes: int = 128, temperature: float = 1.0, hard: bool = False
    ) -> None:
        check_positive(in_features=in_features, pixels=pixels, temperature=temperature)
        if not (isinstance(codes, int) and codes >= 2):
            raise ValueError(f"codes must be a whole number of at least 2, got {codes!r}.")
        super().__init__(in_features, codes)
        self.pixels, self.temperature, self.hard = pixels, temperature, hard
        self.codebook = Codebook(codes, pixels, DECAY)
        self.codebook.vectors.zero_()  # the mean of standardised targets, for what is not known at first

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch codes"]:
        return F.linear(check_features(features, self.in_features), self.weight, self.bias)

    def loss(
        self,
        logits: Float[Tensor, "batch codes"],
        target: Float[Tensor, "batch pixels"],
        reduction: str = "mean",
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Cross-entropy to the code closest to each target, in nats."""
        check_reduction(reduction)
        logits = check_logits(logits, classes=self.out_features)
        if target.shape != (len(logits), self.pixels) or not target.is_floating_point():
            raise ValueError(
                f"target must be real numbers of shape {(len(logits), self.pixels)}, got"
                f" {tuple(target.shape)} of {target.dtype}."
            )
        known = ~target.isnan()
        if values_visible(target) and not known.any(dim=1).all():
            raise ValueError("target has rows without a known number; leave them out.")
        if self.training:
            nearest = self.codebook.vectors[self.codebook.nearest(target, known)]
            filled = torch.where(known, target.to(nearest), nearest)
            self.codebook.follow(filled.unique(dim=0))  # or most codes end as one flat background
        return F.cross_entropy(logits, self.codebook.nearest(target, known), reduction=reduction)

    def predict(self, logits: Float[Tensor, "batch codes"]) -> Float[Tensor, "batch pixels"]:
        """The mean code under the probabilities, or the likeliest one."""
        logits, codes = check_logits(logits, classes=self.out_features), self.codebook.vectors
        return codes[logits.argmax(dim=1)] if self.hard else soft_token(logits, codes, self.temperature)
