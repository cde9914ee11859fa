"""Gradient difference: gradient ascent held in place by what is to be kept."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from logitkit.adapt.unlearning import Unlearner, grad_diff
from logitkit.registry import part


@part(
    "grad_diff",
    "adapt",
    title="Gradient ascent on what to forget, descent on what to keep",
    tasks=("unlearning",),
    needs=("retain_logits", "retain_labels"),
)
class GradDiff(Unlearner):
    """Unlearning with other answers at hand that are to stay.

    Equation: L = mean log p over the tokens of the answers to forget - mean log p over those of answers to
    keep.

    Shapes: logits (batch, time, classes) of the prompts with the answers to forget, labels (batch, time)
    of what they predict, -100 at prompt and padding, and the same of answers to keep, of any number and
    length. Returns a scalar.

    Defaults: lr = 3e-4, steps = 200, stop = 0.05, the budget that `FLATLoss` has.

    Raises: ValueError for a budget that is none, wrong shapes or dtypes, NaN logits, labels out of range, an
    empty batch.

    Source: Liu, Liu, Stone, CoLLAs 2022, arXiv:2203.12817, in the form of Maini et al., COLM 2024,
    arXiv:2401.06121.

    Not for: models whose other data are not at hand (see `FLATLoss`).
    """

    def forward(
        self,
        forget_logits: Float[Tensor, "batch time classes"],
        forget_labels: Int[Tensor, "batch time"],
        retain_logits: Float[Tensor, "retained length classes"],
        retain_labels: Int[Tensor, "retained length"],
    ) -> Float[Tensor, ""]:
        return grad_diff(forget_logits, forget_labels, retain_logits, retain_labels)
