"""The multilayer perceptron: the reference backbone for tables and embeddings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from logitkit.models.base import Backbone, check_inputs
from logitkit.registry import Choice, Real, part


@part(
    "mlp",
    "models",
    title="Multilayer perceptron",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={
        "hidden": Choice((128,), (128, 128), (256, 256), (256, 256, 256)),
        "dropout": Real(0.0, 0.5),
    },
)
class MLP(Backbone):
    """Fully connected layers with ReLU: the default for tables and embeddings, and for any input whose
    axes carry no neighbourhood.

    Equation: h_0 = vec(x), h_i = dropout(relu(W_i h_{i-1} + b_i)); features = h_L.

    Shapes: x (batch, *input_shape) -> features (batch, hidden[-1]), unitless and at least 0.

    Defaults: two hidden layers of 128, no dropout; torch's initialisation of `nn.Linear`. `linear`, called
    with (in_features, out_features), puts other layers in the place of W_i h + b_i.

    Raises: ValueError for no or non-positive widths, dropout outside [0, 1), an input of another shape or
    dtype, an empty batch or NaN.

    Source: Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 323,
    1986, equations 1-2; the rectifier from Glorot, Bordes, Bengio, AISTATS 2011.

    Not for: images beyond a few hundred pixels, where `cnn` needs fewer weights and fewer examples.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        *,
        linear: Callable[..., nn.Module] = nn.Linear,
    ) -> None:
        super().__init__(input_shape)
        if not hidden or not all(isinstance(n, int) and n > 0 for n in hidden):
            raise ValueError(f"hidden must hold at least one positive width, got {hidden!r}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        widths = [math.prod(self.input_shape), *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [linear(fan_in, fan_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward_features(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        return self.layers(check_inputs(x, self.input_shape).flatten(1))
