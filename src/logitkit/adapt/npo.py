"""Negative preference optimisation: gradient ascent that slows down as answers are forgotten."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from logitkit.adapt.unlearning import Unlearner, npo
from logitkit.ops import check_positive
from logitkit.registry import part


@part(
    "npo",
    "adapt",
    title="Negative preference optimisation",
    tasks=("unlearning",),
    needs=("forget_reference",),
)
class NPO(Unlearner):
    """Unlearning that stops pushing once an answer is much less likely than it was.

    Equation: L = -(2 / beta) mean log sigmoid(-beta log(p / p_ref)) over the answers to forget, p that of
    a whole answer and p_ref the same before unlearning.

    Shapes: logits (batch, time, classes) of the prompts with the answers to forget, labels (batch, time)
    of what they predict, -100 at prompt and padding, and the logits of the model before. Returns a scalar.

    Defaults: beta = 0.1, the authors'; as beta goes to 0 this is gradient ascent. lr = 3e-4, steps = 200,
    stop = 0.05, the budget that `FLATLoss` has.

    Raises: ValueError for a beta that is not positive, a budget that is none, wrong shapes or dtypes, NaN
    logits, labels out of range, an empty batch.

    Source: Zhang, Lin, Bai, Mei, COLM 2024, arXiv:2404.05868.

    Not for: answers to be given instead (see `DPO`, `FLATLoss`).
    """

    def __init__(
        self, beta: float = 0.1, *, lr: float = 3e-4, steps: int = 200, stop: float | None = 0.05
    ) -> None:
        super().__init__(lr, steps, stop)
        check_positive(beta=beta)
        self.beta = beta

    def forward(
        self,
        forget_logits: Float[Tensor, "batch time classes"],
        forget_labels: Int[Tensor, "batch time"],
        forget_reference: Float[Tensor, "batch time classes"],
    ) -> Float[Tensor, ""]:
        return npo(forget_logits, forget_labels, forget_reference, self.beta)
