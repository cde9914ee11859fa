"""Sparse concept bottlenecks: classes from what a vision-language model says of concepts."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_batch, check_logits, check_positive, draw_gumbel
from logitkit.ops.sphere import cosine
from logitkit.registry import Choice, Real, part

MODES = ("gumbel", "contrastive", "l1")


def gumbel_concept_loss(
    concepts: Float[Tensor, "batch concepts"],
    tau: float = 1.0,
    gumbel: Float[Tensor, "2 batch concepts"] | None = None,
) -> Float[Tensor, ""]:
    """-(mean log G_0 + mean log G_1) / 2, G_d the softmax of (concepts + Gumbel noise) / tau over axis d.

    gumbel: the noise of G_0 and of G_1, drawn where it is not given. Smallest where all scores are equal: it
    keeps every concept of some weight beside a loss that picks the useful ones. Raises ValueError for a tau
    that is not positive.
    """
    check_positive(tau=tau)
    noise = draw_gumbel((2, *concepts.shape), concepts) if gumbel is None else gumbel
    rows = F.log_softmax((concepts + noise[1]) / tau, dim=1).mean()
    return -(F.log_softmax((concepts + noise[0]) / tau, dim=0).mean() + rows) / 2


def contrastive_concept_loss(concepts: Float[Tensor, "batch batch"]) -> Float[Tensor, ""]:
    """Mean of the cross-entropies along both dimensions with the diagonal as target. Raises ValueError unless
    there are as many examples as concepts."""
    if concepts.ndim != 2 or concepts.shape[0] != concepts.shape[1]:
        raise ValueError(
            f"the contrastive loss pairs example i with concept i, so the batch must have as many examples as"
            f" concepts, got {tuple(concepts.shape)}."
        )
    target = torch.arange(len(concepts), device=concepts.device)
    return (F.cross_entropy(concepts, target) + F.cross_entropy(concepts.T, target)) / 2


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
class SparseCBM(nn.Module):
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
    `cbm.py` and `trainer_utils.py`. Without training: `concept_matrix_search`.

    Not for: the Gumbel term alone, which only makes all scores equal; hard Gumbel samples, whose logarithm is
    -inf.
    """

    def __init__(
        self,
        num_concepts: int,
        num_classes: int,
        mode: Literal["gumbel", "contrastive", "l1"] = "gumbel",
        tau: float = 1.0,
        l1_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        check_positive(num_concepts=num_concepts, num_classes=num_classes, tau=tau, l1_weight=l1_weight)
        self.num_concepts = num_concepts
        self.mode = mode
        self.tau = tau
        self.l1_weight = l1_weight
        self.concepts = nn.Linear(num_concepts, num_concepts, bias=False)
        self.head = nn.Linear(num_concepts, num_classes, bias=False)

    def forward(
        self, similarities: Float[Tensor, "batch concepts"]
    ) -> tuple[Float[Tensor, "batch concepts"], Float[Tensor, "batch classes"]]:
        check_logits(similarities, "similarities", self.num_concepts)
        c = self.concepts(similarities)
        return c, self.head(c)

    def loss(
        self, similarities: Float[Tensor, "batch concepts"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy plus the term of the mode."""
        c, logits = self(similarities)
        logits, target = check_batch(logits, target)
        return F.cross_entropy(logits, target) + self._term(c.to(logits.dtype))

    def _term(self, c: Float[Tensor, "batch concepts"]) -> Float[Tensor, ""]:
        if self.mode == "gumbel":
            return gumbel_concept_loss(c, self.tau)
        if self.mode == "contrastive":
            return contrastive_concept_loss(c)
        return self.l1_weight * self.concepts.weight.abs().sum().to(c.dtype) / self.num_concepts
