"""Bottlenecks: objectives that limit what codes keep of the input, and models whose codes have names."""

from logitkit.bottleneck.cs_ib import CSIB, conditional_cs, cs_qmi, gaussian_gram, median_sigma
from logitkit.bottleneck.sparse_cbm import (
    SparseCBM,
    concept_matrix_search,
    contrastive_concept_loss,
    gumbel_concept_loss,
    hoyer_sparsity,
)

__all__ = [
    "CSIB",
    "SparseCBM",
    "concept_matrix_search",
    "conditional_cs",
    "contrastive_concept_loss",
    "cs_qmi",
    "gaussian_gram",
    "gumbel_concept_loss",
    "hoyer_sparsity",
    "median_sigma",
]
