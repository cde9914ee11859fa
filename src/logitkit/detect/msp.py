"""Maximum softmax probability: the reference arm of every comparison of detectors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_logits
from logitkit.registry import part


@part("msp", "detect", title="Maximum softmax probability", needs=("logits",))
class MSP(nn.Module):
    """How unsure the classifier is of its own prediction: the default detector of inputs it was not
    trained for, at no cost and with nothing to fit.

    Equation: score = 1 - max_k p_k, p = softmax(logits).

    Shapes: logits (batch, classes) -> score (batch,) in [0, 1 - 1/classes], higher is more abnormal.
    Computed from the classes that lost, as r / (1 + r) with r = sum_{k != max} exp(z_k - z_max), so that
    confident rows keep their order where 1 - p rounds to 0.

    Defaults: none to choose; `fit` changes nothing and returns the detector.

    Raises: ValueError for logits of another shape or dtype, NaN or an empty batch.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
    in Neural Networks", ICLR 2017, arXiv:1610.02136, section 3.

    Not for: inputs far from the training data, where a network is often sure; see `mahalanobis`.
    """

    def fit(self, x: Tensor | None = None, y: Tensor | None = None) -> MSP:
        """Nothing to learn; returns self."""
        return self

    def score(self, x: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
        """1 - max_k softmax(x)_k, to the last digits."""
        best, winner = check_logits(x).max(dim=-1, keepdim=True)
        others = (check_logits(x) - best).exp().scatter(-1, winner, 0.0).sum(dim=-1)
        return others / (1 + others)
