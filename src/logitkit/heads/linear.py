"""The linear head: the reference arm of every comparison of heads."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features
from logitkit.registry import part


@part(
    "linear",
    "heads",
    title="Linear layer",
    tasks=("classification", "binary", "regression", "multilabel"),
)
class LinearHead(nn.Linear):
    """The ordinary last layer, `torch.nn.Linear`, with logitkit's checks.

    Equation: logits = x W^T + b.

    Shapes: features (batch, in_features) -> logits (batch, num_classes), unitless scores.

    Defaults: bias on and torch's initialisation, uniform in +-1/sqrt(in_features).

    Raises: ValueError for features of another shape or dtype, or an empty batch.

    Source: `torch.nn.Linear`.

    Not for: many more classes than features with few examples of each; see `cosine` and `ebv`.
    """

    def __init__(self, in_features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__(in_features, num_classes, bias=bias)

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        return F.linear(check_features(features, self.in_features), self.weight, self.bias)
