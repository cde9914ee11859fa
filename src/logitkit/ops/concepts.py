"""Layers of concepts: classes from scores of concepts, and what keeps the scores in shape."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops.checks import check_batch, check_logits, check_positive
from logitkit.ops.random import draw_gumbel

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


def contrastive_concept_loss(
    concepts: Float[Tensor, "batch concepts"], paired: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, ""]:
    """Mean of the cross-entropies along both dimensions of which the target is the example's own concept, and
    the concept's own example.

    paired: the concept of each example; without it example i is paired with concept i. Raises ValueError
    unless there are then as many examples as concepts.
    """
    if paired is None and (concepts.ndim != 2 or concepts.shape[0] != concepts.shape[1]):
        raise ValueError(
            f"the contrastive loss pairs example i with concept i, so the batch must have as many examples as"
            f" concepts, got {tuple(concepts.shape)}."
        )
    example = torch.arange(len(concepts), device=concepts.device)
    paired = example if paired is None else paired
    return (F.cross_entropy(concepts, paired) + F.cross_entropy(concepts.T[paired], example)) / 2


class ConceptLayers(nn.Module):
    """Concept scores c = A s of similarities s, class logits W c, and an objective of both: see
    `bottleneck.SparseCBM`."""

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

    def scores(
        self, similarities: Float[Tensor, "batch concepts"]
    ) -> tuple[Float[Tensor, "batch concepts"], Float[Tensor, "batch classes"]]:
        """Concept scores and class logits."""
        check_logits(similarities, "similarities", self.num_concepts)
        c = self.concepts(similarities)
        return c, self.head(c)

    def objective(
        self,
        similarities: Float[Tensor, "batch concepts"],
        target: Int[Tensor, " batch"],
        paired: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy plus the term of the mode; `paired` as in `contrastive_concept_loss`."""
        c, logits = self.scores(similarities)
        logits, target = check_batch(logits, target)
        return F.cross_entropy(logits, target) + self._term(c.to(logits.dtype), paired)

    def _term(self, c: Float[Tensor, "batch concepts"], paired: Tensor | None) -> Float[Tensor, ""]:
        if self.mode == "gumbel":
            return gumbel_concept_loss(c, self.tau)
        if self.mode == "contrastive":
            return contrastive_concept_loss(c, paired)
        return self.l1_weight * self.concepts.weight.abs().sum().to(c.dtype) / self.num_concepts
