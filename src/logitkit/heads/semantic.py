"""LingoCL's semantic head: classes are what a language model makes of their names, and stay so."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_features, check_positive
from logitkit.ops.sphere import cosine, unit
from logitkit.registry import Real, part

Encoder = Callable[[list[str]], Tensor]


def hashed_text(texts: Sequence[str], dim: int = 512) -> Float[Tensor, "texts dim"]:
    """Unit vectors of texts: the sum over words of random directions that the word itself decides.

    Texts that share words point in similar directions, "red disc" and "red square", and that is all that it
    knows of language; a language model knows more.
    """
    check_positive(dim=dim)
    vectors = []
    for text in texts:
        words = re.findall(r"\w+", text.lower()) or [text]
        seeds = [zlib.crc32(word.encode()) for word in words]
        drawn = [torch.randn(dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        vectors.append(torch.stack(drawn).sum(dim=0))
    return unit(torch.stack(vectors))


def text_targets(
    names: Sequence[str], encoder: Encoder | None = None, template: str = "a photo of a {}"
) -> Float[Tensor, "classes dim"]:
    """Unit vectors of class names: those of `encoder` on the template filled in, or of `hashed_text` on the
    names alone."""
    if not names:
        raise ValueError("text_targets needs at least one class name, got 0.")
    if encoder is None:
        return hashed_text(names)
    vectors = encoder([template.format(name) for name in names]).detach()
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise ValueError(f"the encoder must return ({len(names)}, dim) vectors, got {tuple(vectors.shape)}.")
    return unit(vectors)


@part(
    "semantic",
    "heads",
    title="Enhancing Visual Continual Learning with Language-Guided Supervision",
    paper="arXiv:2403.16124",
    number=183,
    replaces="linear",
    aliases=("lingocl",),
    search_space={"scale": Real(5.0, 50.0, log=True)},
)
class SemanticHead(nn.Module):
    """Semantic head (LingoCL): learning classes task after task, where a learned last layer drifts and
    related classes should share directions.

    Equation: logits_k = s cos(A f, t_k), t_k = the embedding of the name of class k by a frozen language
    model, fixed before the class is seen; A a linear map where f and t differ in size, the identity
    otherwise; s learned, or fixed without `learn_scale`.

    Shapes: features (batch, in_features) -> logits (batch, num_classes) in [-s, s], in at least float32. The
    targets (num_classes, dim) are a buffer in `state_dict`.

    Defaults: s starts at 14, about 1 / 0.07. Targets are, in this order, `embeddings` (num_classes, dim),
    which may be of any length; those of `encoder(["a photo of a NAME", ...])`, such as CLIP's text encoder,
    on `class_names`; or, with names alone, `hashed_text`, in which names are similar that share words. The
    engine passes the names of the data's classes.

    Raises: ValueError for neither embeddings nor names, or another number of them than num_classes, sizes or
    a scale that are not positive, features of another shape or dtype, or an empty batch.

    Source: Ni, Zhao, Zhang, et al., CVPR 2024, arXiv:2403.16124: the head is replaced by the semantic
    targets and frozen. It says how to learn; replay, distillation or regularisation are the trainer's. The
    map and the scale follow common practice, as the paper leaves them open.

    Not for: names that say nothing of what is seen ("0", "1", ...), where targets are merely random.
    """

    targets: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        embeddings: Float[Tensor, "classes dim"] | None = None,
        encoder: Encoder | None = None,
        scale: float = 14.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, scale=scale)
        targets = _targets(class_names, embeddings, encoder)
        if targets.ndim != 2 or len(targets) != num_classes:
            raise ValueError(f"targets must have shape ({num_classes}, dim), got {tuple(targets.shape)}.")
        self.in_features = in_features
        self.encoder = encoder
        dim = targets.shape[1]
        self.map = nn.Identity() if dim == in_features else nn.Linear(in_features, dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn_scale)
        self.register_buffer("targets", targets)

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        f = self.map(check_features(features, self.in_features))
        return self.scale * cosine(f, self.targets)

    def expand(
        self, class_names: Sequence[str] | None = None, embeddings: Float[Tensor, "classes dim"] | None = None
    ) -> SemanticHead:
        """Add classes after those there are, whose logits do not change.

        Raises ValueError for neither names nor embeddings, or embeddings of another size.
        """
        new = _targets(class_names, embeddings, self.encoder)
        if new.ndim != 2 or new.shape[1] != self.targets.shape[1]:
            raise ValueError(
                f"targets must have shape (classes, {self.targets.shape[1]}), got {tuple(new.shape)}."
            )
        self.targets = torch.cat([self.targets, new.to(self.targets)])
        return self


def _targets(names: Sequence[str] | None, embeddings: Tensor | None, encoder: Encoder | None) -> Tensor:
    """Unit vectors of classes from what is known of them."""
    if embeddings is not None:
        return unit(embeddings.detach())
    if names is None:
        raise ValueError("classes need embeddings or class_names, got None for both.")
    return text_targets(names, encoder)
