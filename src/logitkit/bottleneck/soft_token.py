"""Soft tokens: the mean code under predicted probabilities in place of the likeliest code."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_logits, check_positive
from logitkit.ops.codebook import soft_weights
from logitkit.registry import part


class SoftTokens(NamedTuple):
    """What soft tokens are made of: the likeliest code of each, and the weight of every code."""

    tokens: Int[Tensor, "*batch"]
    weights: Float[Tensor, "*batch codes"]


@part(
    "soft_token",
    "bottleneck",
    title="All in Tokens: Unifying Output Space of Visual Tasks via Soft Token",
    paper="arXiv:2301.02229",
    number=144,
    aliases=("ait", "ait_soft_tokens"),
    tasks=("segmentation", "depth"),
)
class SoftToken(nn.Module):
    """The mean of a codebook under predicted probabilities: for outputs made of discrete tokens (depth maps,
    masks, any VQ-VAE's codes) where picking the likeliest token loses accuracy and stops the gradient.

    Equation: z_hat = sum_k softmax(l / T)_k E_k, E the codebook; z_hat is what a transformer reads as its
    next input (E its embeddings) and what a tokeniser's decoder turns into the output (E its codes). As T
    falls to 0 it becomes the code of the largest logit.

    Shapes: logits (..., codes) -> (z_hat (..., dim), info), info.tokens (...) int64 the likeliest codes and
    info.weights (..., codes) the probabilities. z_hat has the codebook's dtype. Slice logits of a joint
    vocabulary to those of the codebook first, or probability leaks to the tokens of other tasks.

    Defaults: T = 1, as the authors use for masks and for the next input; they decode depth with T = 1.25
    (logits times 0.8) and find that it matters little. The codebook is a buffer: a tokeniser is frozen.

    Raises: ValueError for a codebook that is not (codes, dim) real numbers with at least 2 codes, a
    temperature that is not positive, logits of another width, rank or dtype, an empty batch, or NaN.

    Source: Ning, Li, Zhang, Wang, Geng, Dai, He, Hu, ICCV 2023, arXiv:2301.02229, "Soft token"; the authors'
    `decode_soft`. The tokeniser and the transformer of the paper are `models.MaskedVQVAE` and
    `models.AiTSmall`: they map images to token sequences, not to features for a head, so they are plain
    classes there. `heads.SoftTokenHead` makes a last layer of the part.

    Not for: codebooks whose mean decodes to nothing sensible, such as words; sampling several outputs.
    """

    def __init__(self, codebook: Float[Tensor, "codes dim"], temperature: float = 1.0) -> None:
        super().__init__()
        if codebook.ndim != 2 or len(codebook) < 2 or not codebook.is_floating_point():
            raise ValueError(
                "codebook must be real numbers of shape (codes, dim) with at least 2 codes, got"
                f" {tuple(codebook.shape)} of {codebook.dtype}."
            )
        check_positive(temperature=temperature)
        self.codebook: Tensor
        self.register_buffer("codebook", codebook.detach().clone())
        self.temperature = temperature

    def forward(
        self, logits: Float[Tensor, "*batch codes"]
    ) -> tuple[Float[Tensor, "*batch dim"], SoftTokens]:
        if logits.ndim < 2:
            raise ValueError(f"logits must have shape (batch, ..., codes), got {tuple(logits.shape)}.")
        rows = check_logits(logits.flatten(0, -2), classes=len(self.codebook))
        weights = soft_weights(rows, self.temperature).view(logits.shape)
        z_hat = weights.to(self.codebook.dtype) @ self.codebook
        return z_hat, SoftTokens(weights.argmax(dim=-1), weights)
