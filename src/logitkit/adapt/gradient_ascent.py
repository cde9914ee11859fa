"""Gradient ascent: the plainest way to make a model forget answers."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from logitkit.adapt.unlearning import Unlearner, gradient_ascent
from logitkit.registry import part


@part(
    "gradient_ascent",
    "adapt",
    title="Gradient ascent on the answers to forget",
    tasks=("unlearning",),
)
class GradientAscent(Unlearner):
    """Unlearning by making the answers to forget unlikely, and nothing else: what other ways should beat.

    Equation: L = mean log p(token | prompt, tokens before) over the tokens of the answers to forget.

    Shapes: logits (batch, time, classes) of the prompts with the answers to forget, and labels (batch,
    time) of what they predict, -100 at prompt and padding. Returns a scalar.

    Defaults: lr = 3e-4, steps = 200, stop = 0.05, the budget that `FLATLoss` has.

    Raises: ValueError for a budget that is none, wrong shapes or dtypes, NaN logits, labels out of range, an
    empty batch.

    Source: Jang et al., ACL 2023, arXiv:2210.01504.

    Not for: many steps, as the loss has no lower bound and the model ends up knowing nothing.
    """

    def forward(
        self,
        forget_logits: Float[Tensor, "batch time classes"],
        forget_labels: Int[Tensor, "batch time"],
    ) -> Float[Tensor, ""]:
        return gradient_ascent(forget_logits, forget_labels)
