"""Bottlenecks: objectives that limit what codes keep, models whose codes have names, tokens of a codebook."""

from logitkit.bottleneck.cs_ib import CSIB, conditional_cs, cs_qmi, gaussian_gram, median_sigma
from logitkit.bottleneck.soft_token import SoftToken, SoftTokens
from logitkit.bottleneck.sparse_cbm import (
    SparseCBM,
    concept_matrix_search,
    contrastive_concept_loss,
    gumbel_concept_loss,
    hoyer_sparsity,
)
from logitkit.ops.codebook import soft_token

__all__ = [
    "CSIB",
    "SoftToken",
    "SoftTokens",
    "SparseCBM",
    "concept_matrix_search",
    "conditional_cs",
    "contrastive_concept_loss",
    "cs_qmi",
    "gaussian_gram",
    "gumbel_concept_loss",
    "hoyer_sparsity",
    "median_sigma",
    "soft_token",
]
