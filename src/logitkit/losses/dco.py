"""Direct coverage optimisation: train for pass@N, the chance that one of N sampled answers is right."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.losses.base import ClassificationLoss
from logitkit.ops import check_sequences, log1mexp, log_odds_against
from logitkit.registry import Real, part

RARE = -60.0  # below this log p, 1 - (1 - p)^N is N p to the last digit, and p itself may underflow


def pass_at_n(p: Float[Tensor, "*shape"], N: float) -> Float[Tensor, "*shape"]:
    """1 - (1 - p)^N: the chance that at least one of N samples is right, p in [0, 1] for each."""
    return -torch.expm1(N * torch.log1p(-p))


def unbiased_pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from c right answers among n samples: 1 - C(n-c, k) / C(n, k).

    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}.")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def overconfidence_factor(p: Float[Tensor, "*shape"], N: float) -> Float[Tensor, "*shape"]:
    """F = N p (1-p)^(N-1) / (1 - (1-p)^N), by which the gradient of the loss is smaller than cross-entropy's.

    1 where N p is small, 0 where p is well above 1/N; always 1 for N = 1.
    """
    if N == 1:
        return torch.ones_like(p)
    log_q = torch.log1p(-p)
    inside = p > 0
    covered = torch.where(inside, -torch.expm1(N * log_q), torch.ones_like(p))
    return torch.where(inside, N * p * torch.exp((N - 1) * log_q) / covered, torch.ones_like(p))


def dco_from_log_p(log_p: Float[Tensor, "*answers"], N: float) -> Float[Tensor, "*answers"]:
    """-log(1 - (1 - p)^N) from log p of each answer; 0 with gradient 0 at p = 1 when N > 1."""
    rare = log_p < RARE
    # p = 1 is moved by the smallest number there is: log(1 - p) stays finite.
    log_p_ = torch.where(rare, log_p.new_tensor(-1.0), log_p).clamp(max=-torch.finfo(log_p.dtype).tiny)
    return torch.where(rare, -math.log(N) - log_p, -log1mexp(N * log1mexp(log_p_)))


def dco(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], N: float = 16
) -> Float[Tensor, " batch"]:
    """-log(1 - (1 - p_y)^N) per row, p = softmax(logits): every row is an answer; see `DCOLoss`."""
    return dco_from_log_p(F.logsigmoid(-log_odds_against(logits, target)), N)


def dco_sequence(
    logits: Float[Tensor, "batch length classes"],
    target: Int[Tensor, "batch length"],
    N: float = 16,
    ignore_index: int = -100,
) -> Float[Tensor, " batch"]:
    """-log(1 - (1 - p)^N) per sequence, log p the sum of its tokens' log-probabilities.

    A sequence is one answer; positions labelled `ignore_index` (prompt, padding) are not part of it. To
    score every proof step instead, pass one step per row, with N the effective number of tries per step.
    Raises ValueError as `DCOLoss`.
    """
    logits, labels = check_sequences(logits, target, ignore_index)
    kept = labels != ignore_index
    safe = labels.where(kept, labels.new_zeros(()))
    log_p = F.logsigmoid(-log_odds_against(logits.flatten(0, 1), safe.flatten())).view(labels.shape)
    return dco_from_log_p(log_p.where(kept, log_p.new_zeros(())).sum(dim=-1), N)


@part(
    "dco",
    "losses",
    title="Rethinking Fine-Tuning when Scaling Test-Time Compute",
    paper="arXiv:2502.07154",
    number=13,
    replaces="cross_entropy",
    search_space={"N": Real(2.0, 1024.0, log=True)},
)
class DCOLoss(ClassificationLoss):
    """DCO loss: when N answers will be sampled and one right one is enough, so confidence should be limited.

    Equation: l = -log(1 - (1 - p_y)^N), p = softmax(logits). Its gradient is cross-entropy's times
    F = N p (1-p)^(N-1) / (1 - (1-p)^N) (`overconfidence_factor`), which fades once p is well above 1/N.

    Shapes: logits (batch, classes) real scores, target (batch,) integer labels, each row an answer;
    returns a scalar in nats, or (batch,) with `reduction="none"`. Answers of several tokens:
    `dco_sequence`.

    Defaults: N = 16, the smallest budget above 1 in the paper; set it to the number of samples you will
    draw. N = 1 is cross-entropy. N need not be whole: a proof of m steps with N tries has about N^(1/m) per
    step.

    Raises: ValueError for N < 1, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Chen, Raventos, Cheng, Ganguli, Druckmann, arXiv:2502.07154, the DCO loss and its gradient
    factor F(N, p).

    Not for: a single answer (pass@1), where cross-entropy is better; calibrated probabilities.
    """

    def __init__(
        self,
        N: float = 16,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index, weight=weight)
        if not 1 <= N < math.inf:
            raise ValueError(f"N must be at least 1 and finite, got {N}.")
        self.N = N

    def per_example(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        return dco(logits, target, self.N)
