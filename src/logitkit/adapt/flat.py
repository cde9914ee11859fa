"""FLAT: forgetting answers by preferring a template to them, with nothing but what is to be forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.adapt.unlearning import Unlearner
from logitkit.ops import check_sequences
from logitkit.registry import Choice, part

# Divergence -> (a, c) of L = -a(P_e) + c(P_f), as the authors' code has them.
DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tv": (lambda p: torch.tanh(p) / 2, lambda p: torch.tanh(p) / 2),
    "kl": (lambda p: p, lambda p: torch.exp(p - 1)),
    "pearson": (lambda p: p, lambda p: p * p / 4 + p),
    "js": (lambda p: math.log(2) - F.softplus(-p), lambda p: p + F.softplus(-p) - math.log(2)),
    "jeffrey": (lambda p: p, lambda p: p + p**2 / 4 + p**3 / 16),
}
# These reward the forget answer or punish the template.
REVERSED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "reverse_kl": (lambda p: -torch.exp(p), lambda p: -1 - p),
    "neyman": (lambda p: 1 - torch.exp(p), lambda p: 2 - 2 * torch.sqrt(1 - p)),
    "squared_hellinger": (lambda p: 1 - torch.exp(p), lambda p: torch.exp(-p) - 1),
}


def answer_probability(
    logits: Float[Tensor, "batch time classes"],
    labels: Int[Tensor, "batch time"],
    ignore_index: int = -100,
    legacy: bool = False,
) -> Float[Tensor, " batch"]:
    """P: the mean over the tokens of each answer of their probabilities, 0 for no answer; see `FLATLoss`."""
    logits, labels = check_sequences(logits, labels, ignore_index)
    kept = labels != ignore_index
    safe = labels.where(kept, labels.new_zeros(()))
    p = torch.softmax(logits, dim=-1).gather(2, safe[:, :, None])[:, :, 0] * kept
    return p.sum(dim=1) / (labels.shape[1] if legacy else kept.sum(dim=1).clamp(min=1))


@part(
    "flat",
    "adapt",
    title="LLM Unlearning via Loss Adjustment with Only Forget Data",
    paper="arXiv:2410.11143",
    number=74,
    tasks=("unlearning",),
    needs=("template_logits", "template_labels"),
    search_space={"divergence": Choice(*DIVERGENCES)},
)
class FLATLoss(Unlearner):
    """FLAT loss: a language model should forget some answers, and there is neither other data nor a copy of
    the model to hold it in place.

    Equation: L = -a(P_e) + c(P_f), P_f the mean over prompts of the probability of the answer to forget and
    P_e that of a template answer ("I do not know"), each the mean over its tokens of p(token | prompt, tokens
    before): the variational bound of an f-divergence between template and answer, maximised. "kl": a = P,
    c = exp(P - 1); "tv": both tanh(P) / 2; "pearson": a = P, c = P^2/4 + P; "js": a = log 2 -
    log(1 + e^-P), c = P + log(1 + e^-P) - log 2; "jeffrey": a = P, c = P + P^2/4 + P^3/16.

    Shapes: logits (batch, time, classes) and labels (batch, time) of the prompts with the answers to forget,
    and the same of the prompts with template answers, of any other length: labels are what the logits at the
    same time predict (of a causal language model `ops.next_token_labels(labels)`), `ignore_index` at
    prompt and padding. Returns a scalar.

    Defaults: "kl". `legacy=True` divides the sums over tokens by all positions, prompt and padding
    included, as the authors' code does. "reverse_kl", "neyman" and "squared_hellinger" of that code reward
    what is to be forgotten or punish the template, so they need `experimental=True`. The budget of a
    comparison is lr = 3e-4 for AdamW on all answers to forget, at most 200 updates (`steps`), and none
    once at most 5 % of the answers are still given (`stop`; None goes on).

    Raises: ValueError for an unknown divergence or an experimental one without `experimental=True`, a budget
    that is none, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Wang, Wei, Liu, et al., ICLR 2025, arXiv:2410.11143, section 3, and `get_contrastive_loss` of the
    authors' code.

    Not for: template answers that the model finds all but impossible, as gradients shrink with P; knowledge
    that other prompts still bring out. Other objectives: `logitkit.adapt.gradient_ascent`, `grad_diff`,
    `npo`, `dpo`.
    """

    def __init__(
        self,
        divergence: str = "kl",
        *,
        legacy: bool = False,
        experimental: bool = False,
        ignore_index: int = -100,
        lr: float = 3e-4,
        steps: int = 200,
        stop: float | None = 0.05,
    ) -> None:
        super().__init__(lr, steps, stop)
        if divergence in REVERSED and not experimental:
            raise ValueError(
                f"divergence {divergence!r} rewards the answer to forget or punishes the template, as it was "
                f"released; pass experimental=True to use it all the same."
            )
        known = DIVERGENCES | REVERSED
        if divergence not in known:
            raise ValueError(f"divergence must be one of {', '.join(known)}, got {divergence!r}.")
        self.divergence = divergence
        self.legacy = legacy
        self.ignore_index = ignore_index

    def forward(
        self,
        forget_logits: Float[Tensor, "batch time classes"],
        forget_labels: Int[Tensor, "batch time"],
        template_logits: Float[Tensor, "prompts length classes"],
        template_labels: Int[Tensor, "prompts length"],
    ) -> Float[Tensor, ""]:
        forget = answer_probability(forget_logits, forget_labels, self.ignore_index, self.legacy)
        template = answer_probability(template_logits, template_labels, self.ignore_index, self.legacy)
        reward, penalty = (DIVERGENCES | REVERSED)[self.divergence]
        return penalty(forget.mean()) - reward(template.mean())

    def of_rows(
        self,
        logits: Float[Tensor, "batch time classes"],
        labels: Int[Tensor, "batch time"],
        template: Bool[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch that holds both: rows with an answer to forget and, where `template` is true,
        rows with a template answer. A Hugging Face causal language model unlearns with it after
        `integrations.transformers.use_loss(model, FLATLoss().of_rows)`, given `template` beside its labels.

        Raises: ValueError, beside what the loss raises, for a batch that lacks either.
        """
        rows = template.to(logits.device).bool()
        if rows.shape != logits.shape[:1] or rows.all() or not rows.any():
            raise ValueError(
                "template must be true for some rows of the batch and false for others, got"
                f" {int(rows.sum())} of {len(logits)} rows in shape {tuple(rows.shape)}."
            )
        return self(logits[~rows], labels[~rows], logits[rows], labels[rows])
