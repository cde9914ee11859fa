"""Edit-invariant sequence loss: n-grams of the target may come out anywhere in the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_positive, check_reduction, check_sequences, draw_gumbel, reduce
from logitkit.registry import Real, part


def target_scores(
    log_p: Float[Tensor, "batch time classes"], labels: Int[Tensor, "batch length"], clamp: float = -20.0
) -> Float[Tensor, "batch time length"]:
    """Z_ij = max(log p_i(y_j), clamp): the score of every label at every output position."""
    index = labels[:, None, :].expand(-1, log_p.shape[1], -1)
    return log_p.gather(2, index).clamp(min=clamp)


def eisl_matching(
    scores: Float[Tensor, "batch time time"],
    kept: Bool[Tensor, "batch time"],
    n: int,
    tau: float = 1.0,
    gumbel: Float[Tensor, "batch time time"] | None = None,
) -> tuple[Float[Tensor, "batch time time"], Float[Tensor, "batch time time"]]:
    """S_ij = mean_{k<n} Z_{i+k, j+k}, and w_ij = softmax over i of (S_ij + gumbel) / tau; see `EISLLoss`.

    kept: the positions that count; an n-gram must lie on them, in the output as in the target. n <= 0 is
    that much more than the number of kept neighbours there are; a larger n than that falls back to it. S and
    w are 0 where no n-gram starts, so that every column of w sums to 1 or is 0.
    """
    time = kept.shape[1]
    places = torch.arange(time, device=kept.device)
    # The longest run of kept positions: how far each is from the last one that is not kept.
    gap = torch.where(kept, torch.full_like(places, -1), places).cummax(dim=1).values
    longest = (places - gap).amax(dim=1)
    size = (longest + n if n <= 0 else longest.clamp(max=n)).clamp(min=1)
    total, count = torch.zeros_like(scores), torch.zeros_like(kept, dtype=torch.int64)
    for k in range(time + n if n <= 0 else min(n, time)):
        inside = k < size
        moved = F.pad(scores[:, k:, k:], (0, k, 0, k))
        total = total + moved.where(inside[:, None, None], moved.new_zeros(()))
        count = count + (F.pad(kept[:, k:], (0, k)) & inside[:, None])
    starts = count == size[:, None]
    allowed = starts[:, :, None] & starts[:, None, :]
    zero = total.new_zeros(())
    s = (total / size[:, None, None]).where(allowed, zero)
    z = (s if gumbel is None else s + gumbel) / tau
    # A column without any n-gram is masked afterwards: the softmax of nothing would be NaN.
    w = z.masked_fill(~allowed & starts[:, None, :], -torch.inf).softmax(dim=1)
    return s, w.where(allowed, zero)


@part(
    "eisl",
    "losses",
    title="Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation",
    paper="arXiv:2106.15078",
    number=67,
    replaces="cross_entropy",
    tasks=("sequence",),
    search_space={"ce_weight": Real(0.01, 1.0, log=True), "tau": Real(0.2, 5.0, log=True)},
)
class EISLLoss(nn.Module):
    """Edit-invariant sequence loss: target texts that are noisy, loose translations or one order of many.

    Equation: Z_ij = max(log p_i(y_j), clamp) scores target token j at output position i;
    S_ij = (1/n) sum_{k<n} Z_{i+k, j+k} the n-gram that starts at target j if it comes out at i;
    w_ij = softmax over i of (S_ij + g_ij) / tau, g standard Gumbel noise; L_n = -mean_j sum_i w_ij S_ij;
    l = ngram_weight * mean over n in `ngrams` of L_n + ce_weight * the mean cross-entropy of the sequence.

    Shapes: logits (batch, time, classes) real scores, labels (batch, time) integer labels, `ignore_index` at
    the prompt and the padding, which are left out of output and target alike; returns a scalar in nats,
    averaged over the sequences that have labels, or (batch,) with `reduction="none"`. Memory is
    batch * time^2.

    Defaults: n-grams of 2, 3 and 4 tokens with equal weights, ngram_weight = 1, ce_weight = 0, tau = 1,
    clamp = -20 of the authors' code. n <= 0 is n more than the length of the sequence. Sequences shorter
    than n are matched as a whole. The noise is drawn in training mode, unless `noise=False`.

    Raises: ValueError for no n-grams, tau or weights that are not positive (ce_weight and ngram_weight may
    be 0), wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Liu, Yang, Tao, et al., NAACL 2022, arXiv:2106.15078, and the authors' `EISL.py`, which does not
    mask padding.

    Not for: an untrained autoregressive model, which should first be trained with cross-entropy, as its
    outputs are conditioned on the target's order; tasks whose target is exact.
    """

    def __init__(
        self,
        ngrams: Sequence[int] = (2, 3, 4),
        ngram_weight: float = 1.0,
        ce_weight: float = 0.0,
        tau: float = 1.0,
        noise: bool = True,
        clamp: float = -20.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_positive(tau=tau)
        check_reduction(reduction)
        if not ngrams:
            raise ValueError("ngrams must name at least one length, got ().")
        if not (ngram_weight >= 0 and ce_weight >= 0):
            raise ValueError(f"weights must be at least 0, got {ngram_weight} and {ce_weight}.")
        self.ngrams = tuple(ngrams)
        self.ngram_weight = ngram_weight
        self.ce_weight = ce_weight
        self.tau = tau
        self.noise = noise
        self.clamp = clamp
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(
        self, logits: Float[Tensor, "batch time classes"], labels: Int[Tensor, "batch time"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, labels = check_sequences(logits, labels, self.ignore_index)
        kept = labels != self.ignore_index
        safe = labels.where(kept, labels.new_zeros(()))
        log_p = F.log_softmax(logits, dim=-1)
        scores = target_scores(log_p, safe, self.clamp)
        matched = [self._ngram(scores, kept, n) for n in self.ngrams]
        loss = self.ngram_weight * torch.stack(matched).mean(dim=0)
        if self.ce_weight:
            ce = -log_p.gather(2, safe[:, :, None])[:, :, 0].where(kept, log_p.new_zeros(()))
            loss = loss + self.ce_weight * ce.sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return reduce(loss, self.reduction, kept.any(dim=1).to(loss))

    def _ngram(self, scores: Tensor, kept: Tensor, n: int) -> Float[Tensor, " batch"]:
        """L_n of every sequence."""
        gumbel = draw_gumbel(scores.shape, scores) if self.noise and self.training else None
        s, w = eisl_matching(scores, kept, n, self.tau, gumbel)
        columns = w.detach().sum(dim=(1, 2))  # each column that counts sums to 1
        return -(w * s).sum(dim=(1, 2)) / columns.clamp(min=1)
