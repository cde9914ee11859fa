"""The sparse concept bottleneck as a last layer."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_features
from logitkit.ops.concepts import ConceptLayers
from logitkit.registry import Choice, Real, part


@part(
    "sparse_cbm",
    "heads",
    title="Sparse Concept Bottleneck Models: Gumbel Tricks in Contrastive Learning",
    paper="arXiv:2404.03323",
    number=1,
    companion_of="sparse_cbm",
    replaces="linear",
    search_space={"mode": Choice("gumbel", "l1"), "tau": Real(0.3, 3.0, log=True)},
)
class SparseCBMHead(ConceptLayers):
    """Classes from scores of concepts, of which few matter: for features that are similarities of an example
    to concepts with names, such as an image's to texts, so that a class can be explained by its concepts.

    Equation: concept scores c = A s, s the features; class logits = W c. `loss` = cross-entropy + a term on
    A: "gumbel", the mean of -log softmax((c + g) / tau) over both dimensions of the batch, g Gumbel noise;
    "contrastive", cross-entropies along both dimensions where example i belongs to concept i mod concepts;
    "l1", l1_weight |A|_1 / concepts.

    Shapes: features (batch, in_features), one for each concept -> class logits (batch, num_classes);
    `concept_scores(features)` -> c (batch, in_features). `loss(features, target)` takes the features, not the
    logits, and returns a scalar that depends on the whole batch.

    Defaults: "gumbel" with tau = 1, the paper's; l1_weight = 1e-3. Neither layer has a bias.

    Raises: ValueError for an unknown mode, numbers that are not positive, features of another shape or dtype,
    NaN in the loss, an empty batch, or labels out of range.

    Source: Semenov, Ivanov, Beznosikov, Gasnikov, arXiv:2404.03323, sections 3 and 4. The authors pair
    examples with concepts on the diagonal of the batch, as "contrastive" does here; see
    `bottleneck.SparseCBM` for the part on its own.

    Not for: features of a network that is still learning, which have no names.
    """

    loss_of = "embeddings"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        mode: Literal["gumbel", "contrastive", "l1"] = "gumbel",
        tau: float = 1.0,
        l1_weight: float = 1e-3,
    ) -> None:
        super().__init__(in_features, num_classes, mode, tau, l1_weight)

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.concept_scores(features))

    def concept_scores(
        self, features: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch in_features"]:
        """How much of each concept there is, in units of its own."""
        return self.concepts(check_features(features, self.num_concepts))

    def loss(
        self, features: Float[Tensor, "batch in_features"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy plus the term of the mode."""
        paired = torch.arange(len(features), device=features.device) % self.num_concepts
        return self.objective(features, target, paired)
