"""Normalised softmax: train on the sphere over known classes, then recognise classes never trained on."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_positive
from logitkit.ops.sphere import cosine, unit
from logitkit.registry import Choice, Real, part


@part(
    "normalized_softmax",
    "heads",
    title="Hyperspherical embedding for novel class classification",
    paper="arXiv:2102.03243",
    number=16,
    replaces="linear",
    tasks=("classification", "multilabel"),
    search_space={"temperature": Real(0.02, 0.5, log=True), "layernorm": Choice(False, True)},
)
class NormalizedSoftmaxHead(nn.Module):
    """The normalised-softmax head: plain cross-entropy on it, without pairs or triplets, shapes embeddings
    that also tell unseen classes apart by cosine (see `NovelClassClassifier`).

    Equation: logits_k = <e, v_k> / T, with e = x / |x|, v_k = w_k / |w_k| and no bias; x is first
    layer-normalised, without learned gain or shift, if `layernorm`.

    Shapes: features (batch, in_features) -> logits (batch, num_classes) in [-1/T, 1/T], in at least float32.
    A zero feature vector has all its logits 0.

    Defaults: T = 0.05 and no layer norm; T follows Zhai and Wu, whose loss the paper builds on. Class vectors
    start as directions drawn uniformly on the sphere.

    Raises: ValueError for a temperature that is not positive, features of another shape or dtype, or an empty
    batch.

    Source: Pereira, Joly, Valduriez, Porto, arXiv:2102.03243, section on the normalised softmax; the loss is
    that of Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", arXiv:1811.12649,
    equation 1.

    Not for: features whose length carries the signal; a temperature learned without a floor, which collapses.
    """

    def __init__(
        self, in_features: int, num_classes: int, temperature: float = 0.05, layernorm: bool = False
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, temperature=temperature)
        self.in_features = in_features
        self.temperature = temperature
        self.layernorm = layernorm
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        x = check_features(features, self.in_features)
        if self.layernorm:
            x = F.layer_norm(x, (self.in_features,))
        return cosine(x, self.weight) / self.temperature


class NovelClassClassifier:
    """Classify by similarity to a few labelled examples, of classes no head was trained on.

    Equation: y = argmax_c <e, m_c> with m_c the direction of the sum of class c's unit support embeddings
    ("centroid"), or the label of the most similar support example ("knn"). With metric "euclidean" the
    embeddings are not normalised, m_c is their mean, and similarity is minus the distance.

    Labels may be any integers; `classes` holds them in order.
    """

    def __init__(
        self,
        rule: Literal["centroid", "knn"] = "centroid",
        metric: Literal["cosine", "euclidean"] = "cosine",
    ) -> None:
        if rule not in ("centroid", "knn"):
            raise ValueError(f"rule must be 'centroid' or 'knn', got {rule!r}.")
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}.")
        self.rule = rule
        self.metric = metric

    def fit(self, support: Float[Tensor, "shots d"], labels: Int[Tensor, " shots"]) -> NovelClassClassifier:
        """Keep the labelled embeddings, or one mean per class; returns self."""
        points = self._embed(support)
        if labels.shape != (points.shape[0],) or labels.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape ({points.shape[0]},) to match the support,"
                f" got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        self.classes, index = torch.unique(labels, return_inverse=True)
        if self.rule == "centroid":
            sums = points.new_zeros(len(self.classes), points.shape[1]).index_add(0, index, points)
            points = unit(sums) if self.metric == "cosine" else sums / index.bincount()[:, None]
            index = torch.arange(len(self.classes), device=index.device)
        self.points, self._index = points, index
        return self

    def predict(self, query: Float[Tensor, "batch d"]) -> Int[Tensor, " batch"]:
        """The label of the most similar class mean or support example."""
        points = self._embed(query)
        if self.metric == "cosine":
            nearest = (points @ self.points.T).argmax(dim=1)
        else:
            nearest = torch.cdist(points, self.points).argmin(dim=1)
        return self.classes[self._index[nearest]]

    def _embed(self, x: Tensor) -> Tensor:
        x = check_features(x)
        return unit(x) if self.metric == "cosine" else x
