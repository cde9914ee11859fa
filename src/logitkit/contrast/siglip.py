"""The sigmoid loss of two views: every pair is a decision of its own."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.contrast.base import check_views
from logitkit.ops import sigmoid_contrastive
from logitkit.registry import part


@part(
    "siglip",
    "contrast",
    title="SigLIP: pairwise sigmoid loss of two views",
    tasks=("classification", "regression", "multilabel"),
    needs=("views",),
)
class SigLIPLoss(nn.Module):
    """The sigmoid loss of pairs: whether two views are of one example is decided for every pair by itself,
    without a sum over the batch; for two views of an example, or the two towers of image and text.

    Equation: -1/batch sum_ij log sigmoid(z_ij (t cos_ij + b)), z_ij = 1 where i = j and -1 elsewhere;
    t = exp(`log_scale`) and b = `bias` learn.

    Shapes: views (2, batch, d), or two tensors (batch, d), such as two towers put out; labels are not
    looked at. Returns a scalar. O(batch) memory, see `ops.sigmoid_contrastive`.

    Defaults: t = 10 and b = -10 at the start, as in the paper: most pairs are none.

    Raises: ValueError for another number of views, wrong shapes or dtypes, an empty batch, or NaN.

    Source: Zhai, Mustafa, Kolesnikov, Beyer, arXiv:2303.15343, algorithm 1.

    Not for: classifying by itself, see `cacr`.
    """

    views = 2

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(
        self, views: Float[Tensor, "2 batch d"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        first, second = check_views(views, 2)
        return sigmoid_contrastive(first, second, self.log_scale.exp(), self.bias)
