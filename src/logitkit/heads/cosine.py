"""The cosine head, plain or with a margin: the reference arm for heads on the unit sphere."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_positive
from logitkit.ops.sphere import cosine
from logitkit.registry import Choice, Real, part


def cosface_margin(cosine: Float[Tensor, "..."], margin: float) -> Float[Tensor, "..."]:
    """cos(theta) - m."""
    return cosine - margin


def arcface_margin(cosine: Float[Tensor, "..."], margin: float) -> Float[Tensor, "..."]:
    """cos(theta + m), continued beyond theta = pi - m by cos(theta) - m sin(m) so that it keeps falling."""
    # A cosine this near 1 is 1 up to rounding, and sin has no slope to follow there.
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


@part(
    "cosine",
    "heads",
    title="Cosine head with additive (CosFace) or angular (ArcFace) margin",
    needs=("target",),
    search_space={
        "scale": Real(8.0, 64.0, log=True),
        "margin": Real(0.0, 0.5),
        "margin_type": Choice("cosface", "arcface"),
    },
)
class CosineHead(nn.Module):
    """Class scores by angle alone, with a margin the true class must win by in training: for many classes,
    few examples of each, or features that will be compared by cosine later.

    Equation: logits_k = s cos(theta_k), cos(theta_k) = <x, w_k> / (|x| |w_k|); in training with targets the
    label's becomes s (cos(theta_y) - m) for cosface, s cos(theta_y + m) for arcface. Beyond
    theta_y = pi - m, where cos(theta + m) would rise again, arcface uses cos(theta_y) - m sin(m), as its
    authors' code does.

    Shapes: features (batch, in_features), target (batch,) integer labels or None -> logits
    (batch, num_classes) in [-s (1 + m), s], in at least float32. The margin acts only in training and with
    a target.

    Defaults: s = 64 and m = 0.35, cosface's; arcface's is m = 0.5. Weights start as directions drawn
    uniformly on the sphere. m = 0 is the plain cosine head.

    Raises: ValueError for a scale that is not positive, a negative margin, an arcface margin of pi/2 or more,
    an unknown margin type, features of another shape or dtype, an empty batch, or labels out of range.

    Source: Wang et al., CVPR 2018, arXiv:1801.09414, equation 4 (cosface); Deng et al., CVPR 2019,
    arXiv:1801.07698, equation 3 (arcface).

    Not for: features whose length carries the signal; a margin with noisy labels, which it pushes hardest.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: float = 64.0,
        margin: float = 0.35,
        margin_type: Literal["cosface", "arcface"] = "cosface",
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, scale=scale)
        if margin_type not in ("cosface", "arcface"):
            raise ValueError(f"margin_type must be 'cosface' or 'arcface', got {margin_type!r}.")
        if not 0.0 <= margin < (math.pi / 2 if margin_type == "arcface" else math.inf):
            raise ValueError(
                f"margin must be at least 0, and below pi/2 for arcface; got {margin} with {margin_type}."
            )
        self.in_features = in_features
        self.num_classes = num_classes
        self.scale = scale
        self.margin = margin
        self.margin_type = margin_type
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))

    def forward(
        self, features: Float[Tensor, "batch in_features"], target: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        scores = cosine(check_features(features, self.in_features), self.weight)
        if target is not None:
            y = check_labels(target, scores.shape[0], self.num_classes)[:, None]
            if self.training and self.margin:
                with_margin = cosface_margin if self.margin_type == "cosface" else arcface_margin
                scores = scores.scatter(1, y, with_margin(scores.gather(1, y), self.margin))
        return self.scale * scores
