"""Sparse concept bottlenecks: classes from what a vision-language model says of concepts."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.concepts import MODES, ConceptLayers, contrastive_concept_loss, gumbel_concept_loss
from logitkit.ops.sphere import cosine
from logitkit.registry import Choice, Real, part

__all__ = [
    "MODES",
    "SparseCBM",
    "concept_matrix_search",
    "contrastive_concept_loss",
    "gumbel_concept_loss",
    "hoyer_sparsity",
]


def concept_matrix_search(
    images: Float[Tensor, "batch concepts"], classes: Float[Tensor, "classes concepts"], cubed: bool = False
) -> Float[Tensor, "batch classes"]:
    """Cosines between what images and what class names have to do with each concept: predict the largest.

    images, classes: cosines of each image, and of each class name, to the texts of the concepts, of any
    vision-language model; no training. `cubed` takes their third powers first, which leaves the strong ones.
    The paper also divides rows by their sums, which cosines do not see where sums are positive.
    """
    if images.ndim != 2 or classes.ndim != 2 or images.shape[1] != classes.shape[1]:
        raise ValueError(
            f"images and classes must have the same concepts as columns, got {tuple(images.shape)} and"
            f" {tuple(classes.shape)}."
        )
    return cosine(images**3, classes**3) if cubed else cosine(images, classes)


def hoyer_sparsity(x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
    """(sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1): 0 where all entries are of one size, 1 where one is left."""
    root = x.shape[1] ** 0.5
    return (root - x.norm(p=1, dim=1) / x.norm(dim=1)) / (root - 1)


@part(
    "sparse_cbm",
    "bottleneck",
    title="Sparse Concept Bottleneck Models: Gumbel Tricks in Contrastive Learning",
    paper="arXiv:2404.03323",
    number=1,
    tasks=("concepts",),
    search_space={"mode": Choice("gumbel", "l1"), "tau": Real(0.3, 3.0, log=True)},
)
class SparseCBM(ConceptLayers):
    """Sparse concept bottleneck: classes that are explained by concepts in words, of which few matter, over a
    frozen vision-language model.

    Equation: concept scores c = A s, s the similarities of an image to the texts of the concepts; class
    logits = W c. `loss` = cross-entropy of the class logits + a term on A: "gumbel", the mean of
    -log softmax((c + g) / tau) over both dimensions of the batch (`gumbel_concept_loss`); "contrastive",
    cross-entropies along both dimensions with the diagonal as target (`contrastive_concept_loss`); "l1",
    l1_weight |A|_1 / concepts.

    Shapes: similarities (batch, num_concepts), such as CLIP's `logits_per_image` -> concept scores
    (batch, num_concepts) and class logits (batch, num_classes). `loss(similarities, target)` returns a
    scalar.

    Defaults: "gumbel" with tau = 1, the paper's Sparse-CBM; l1_weight = 1e-3. Neither layer has a bias.

    Raises: ValueError for an unknown mode, numbers that are not positive, similarities of another shape or
    dtype, NaN, an empty batch, labels out of range, or "contrastive" on a batch of another size than
    num_concepts.

    Source: Semenov, Ivanov, Beznosikov, Gasnikov, arXiv:2404.03323, sections 3 and 4, and the authors'
    `cbm.py` and `trainer_utils.py`. Without training: `concept_matrix_search`. In a network: the head
    `sparse_cbm`.

    Not for: the Gumbel term alone, which only makes all scores equal; hard Gumbel samples, whose logarithm is
    -inf.
    """

    def forward(
        self, similarities: Float[Tensor, "batch concepts"]
    ) -> tuple[Float[Tensor, "batch concepts"], Float[Tensor, "batch classes"]]:
        return self.scores(similarities)

    def loss(
        self, similarities: Float[Tensor, "batch concepts"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy plus the term of the mode."""
        return self.objective(similarities, target)
