"""No backbone: the input itself, so that a head on top is a linear probe."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from logitkit.models.base import Backbone, check_inputs
from logitkit.registry import part


@part(
    "linear",
    "models",
    title="Identity backbone",
    tasks=("classification", "binary", "regression", "multilabel"),
)
class LinearModel(Backbone):
    """The input flattened and nothing else: for embeddings that a pretrained network already made, where
    the head on top is a linear probe.

    Equation: features = vec(x).

    Shapes: x (batch, *input_shape) -> features (batch, prod(input_shape)), in the input's own units.

    Defaults: none to choose.

    Raises: ValueError for an input of another shape or dtype, an empty batch or NaN.

    Source: linear probing, Alain and Bengio, "Understanding intermediate layers using linear classifier
    probes", arXiv:1610.01644, section 3.

    Not for: raw pixels or tables whose classes a hyperplane does not separate; see `mlp` and `cnn`.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape)
        self.out_features = math.prod(self.input_shape)

    def forward_features(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        return check_inputs(x, self.input_shape).flatten(1)
