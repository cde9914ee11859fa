"""Direct preference optimisation: the template answer is preferred to the one to forget."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from logitkit.adapt.unlearning import Unlearner, dpo
from logitkit.ops import check_positive
from logitkit.registry import part


@part(
    "dpo",
    "adapt",
    title="Direct preference optimisation of the template",
    tasks=("unlearning",),
    needs=("template_logits", "template_labels", "forget_reference", "template_reference"),
)
class DPO(Unlearner):
    """Unlearning by preferring a template answer, measured from where the model was before.

    Equation: L = -mean log sigmoid(beta (log(p_e / p_e,ref) - log(p_f / p_f,ref))) over prompts, p_e and
    p_f those of the whole template answer and of the answer to forget, the references the same before
    unlearning.

    Shapes: logits (batch, time, classes) of the prompts with the answers to forget, labels (batch, time)
    of what they predict, -100 at prompt and padding, the same of the prompts with template answers, of any
    length, and both logits of the model before. Returns a scalar.

    Defaults: beta = 0.1. lr = 3e-4, steps = 200, stop = 0.05, the budget that `FLATLoss` has.

    Raises: ValueError for a beta that is not positive, a budget that is none, wrong shapes or dtypes, NaN
    logits, labels out of range, an empty batch.

    Source: Rafailov et al., NeurIPS 2023, arXiv:2305.18290.

    Not for: prompts without a template answer (see `NPO`).
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
        template_logits: Float[Tensor, "batch length classes"],
        template_labels: Int[Tensor, "batch length"],
        forget_reference: Float[Tensor, "batch time classes"],
        template_reference: Float[Tensor, "batch length classes"],
    ) -> Float[Tensor, ""]:
        return dpo(
            forget_logits, forget_labels, forget_reference, template_logits, template_labels,
            template_reference, self.beta,
        )  # fmt: skip
