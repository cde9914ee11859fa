"""Objectives that make a language model forget answers, which FLAT is compared with, and what the parts
made of them have in common.

Logits are (batch, time, classes), labels (batch, time) what the logits at the same time predict, -100 where
nothing is asked: for a causal language model `ops.next_token_labels(labels)`. Each returns a scalar.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_positive, check_sequences

IGNORE = -100


class Unlearner(nn.Module):
    """An objective of unlearning, which its subclass is, and the budget that it is descended with.

    lr: step size of AdamW. steps: at most so many updates, each on all answers to forget. stop: none
    follows once at most this share of them is still given; None makes all of them.

    Raises ValueError for an lr that is not positive, fewer than 1 step, or a stop outside [0, 1].
    """

    def __init__(self, lr: float = 3e-4, steps: int = 200, stop: float | None = 0.05) -> None:
        super().__init__()
        check_positive(lr=lr)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        if stop is not None and not 0 <= stop <= 1:
            raise ValueError(f"stop must lie in [0, 1] or be None, got {stop}.")
        self.lr, self.steps, self.stop = lr, steps, stop


def _token_losses(logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Sum of each sequence's cross-entropies, and how many they are."""
    logits, labels = check_sequences(logits, labels, IGNORE)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    return losses.sum(dim=1), (labels != IGNORE).sum(dim=1)


def gradient_ascent(
    logits: Float[Tensor, "batch time classes"], labels: Int[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Minus the mean cross-entropy of the tokens to forget."""
    sums, counts = _token_losses(logits, labels)
    return -sums.sum() / counts.sum().clamp(min=1)


def grad_diff(
    forget_logits: Float[Tensor, "batch time classes"],
    forget_labels: Int[Tensor, "batch time"],
    retain_logits: Float[Tensor, "retained length classes"],
    retain_labels: Int[Tensor, "retained length"],
) -> Float[Tensor, ""]:
    """Gradient ascent on what to forget plus cross-entropy of what to keep."""
    return gradient_ascent(forget_logits, forget_labels) - gradient_ascent(retain_logits, retain_labels)


def npo(
    logits: Float[Tensor, "batch time classes"],
    labels: Int[Tensor, "batch time"],
    reference_logits: Float[Tensor, "batch time classes"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Negative preference optimisation, -(2 / beta) log sigmoid(-beta log(p / p_ref)) averaged over answers.

    reference_logits are those of the model before it forgets, without gradient. (Zhang, Lin, Bai, Mei, COLM
    2024, arXiv:2404.05868.) Raises ValueError for a beta that is not positive.
    """
    check_positive(beta=beta)
    loss, reference = _token_losses(logits, labels)[0], _token_losses(reference_logits, labels)[0]
    return -F.logsigmoid(beta * (loss - reference)).mean() * 2 / beta


def dpo(
    forget_logits: Float[Tensor, "batch time classes"],
    forget_labels: Int[Tensor, "batch time"],
    forget_reference: Float[Tensor, "batch time classes"],
    template_logits: Float[Tensor, "batch length classes"],
    template_labels: Int[Tensor, "batch length"],
    template_reference: Float[Tensor, "batch length classes"],
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Direct preference optimisation of the template answer over the one to forget, averaged over prompts:
    -log sigmoid(beta (log(p / p_ref) of the template - log(p / p_ref) of the answer)).

    The references are logits of the model before it forgets, without gradient. (Rafailov et al., NeurIPS
    2023, arXiv:2305.18290.) Raises ValueError for a beta that is not positive.
    """
    check_positive(beta=beta)
    forget = _token_losses(forget_logits, forget_labels)[0]
    forget = forget - _token_losses(forget_reference, forget_labels)[0]
    template = _token_losses(template_logits, template_labels)[0]
    template = template - _token_losses(template_reference, template_labels)[0]
    return -F.logsigmoid(beta * (forget - template)).mean()
