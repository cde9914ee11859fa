"""Multitask fine-tuning: token losses averaged so that no task drowns the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_positive, check_sequences, log1mexp, log_odds_against, values_visible
from logitkit.registry import Choice, Real, part

MODES = ("token", "sample", "task_token", "task_sample")


@part(
    "multitask",
    "losses",
    title="MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning",
    paper="arXiv:2311.02303",
    number=69,
    replaces="cross_entropy",
    aliases=("mft",),
    tasks=("sequence",),
    needs=("task_id",),
    search_space={"mode": Choice(*MODES), "gamma": Real(0.5, 5.0)},
)
class MultitaskLoss(nn.Module):
    """Multitask loss: one language model for several tasks of which one has most of the tokens.

    Equation: with l_bt = -log p(label) and tasks k of weights w_k, over the tasks that the batch has,
    `mode="task_token"`: L = sum_k w_k L_k / sum_k w_k, L_k the mean of l over all tokens of task k;
    "task_sample": the same with L_k the mean over the sequences of task k of their means over tokens;
    "token": the mean over all tokens; "sample": the mean over sequences of their means over tokens.
    `focal="token"` multiplies l by (1 - p)^gamma, p the probability of that token; `focal="task"`
    multiplies L_k by (1 - exp(-L_k))^gamma.

    Shapes: logits (batch, time, classes) real scores, labels (batch, time) integer labels that the logits
    at the same time predict, `ignore_index` where nothing is asked, task_id (batch,) integers in
    [0, num_tasks); returns a scalar in nats, 0 if nothing is asked at all. `per_task` returns (num_tasks,).

    Defaults: "task_token", the paper's balance of amounts of data (case3 of the authors' code, where "token",
    "sample" and "task_sample" are case1, case2 and case4), equal weights, no focal factor, gamma = 2, and a
    gradient through the focal factor (`detach_focal=True` for none).

    Raises: ValueError for an unknown mode or focal, `focal="task"` without tasks in the mode, weights that
    are not num_tasks numbers of at least 0, gamma below 0, wrong shapes or dtypes, NaN logits, labels or
    task_id out of range, an empty batch.

    Source: Liu, Chen, Liao, et al., KDD 2024, arXiv:2311.02303, section 3 on loss functions, and the
    authors' `loss_utils.py` for the modes, where a sequence without labels gives NaN; here it does not count.

    Not for: one task. Gradients accumulated over several batches are those of one large batch only if all
    of them hold as much of each task; only the sum behind mode "token" can be divided afterwards.
    """

    task_weights: Tensor

    def __init__(
        self,
        num_tasks: int,
        mode: Literal["token", "sample", "task_token", "task_sample"] = "task_token",
        task_weights: Float[Tensor, " tasks"] | None = None,
        focal: Literal["token", "task"] | None = None,
        gamma: float = 2.0,
        *,
        detach_focal: bool = False,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
        if focal not in (None, "token", "task") or (focal == "task" and not mode.startswith("task")):
            raise ValueError(
                f"focal must be None, 'token', or in the task modes 'task', got {focal!r} in mode {mode!r}."
            )
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}.")
        weights = torch.ones(num_tasks) if task_weights is None else task_weights
        if weights.shape != (num_tasks,) or not bool((weights >= 0).all()):
            raise ValueError(f"task_weights must be {num_tasks} numbers of at least 0, got {task_weights}.")
        self.num_tasks = num_tasks
        self.mode = mode
        self.focal = focal
        self.gamma = gamma
        self.detach_focal = detach_focal
        self.ignore_index = ignore_index
        self.register_buffer("task_weights", weights)

    def forward(
        self,
        logits: Float[Tensor, "batch time classes"],
        labels: Int[Tensor, "batch time"],
        task_id: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        sums, counts = self._sequences(logits, labels, task_id)
        if self.mode == "token":
            return _mean(sums.sum(), counts.sum())
        if self.mode == "sample":
            return _mean(_mean(sums, counts).sum(), (counts > 0).sum())
        losses, present = self._tasks(sums, counts, task_id)
        if self.focal == "task":
            # At a loss of 0 the factor is 0; the smallest number keeps its logarithm finite.
            log_q = log1mexp(-losses.clamp(min=torch.finfo(losses.dtype).tiny))
            losses = losses * self._factor(log_q)
        weights = self.task_weights.to(losses) * present
        return _mean((weights * losses).sum(), weights.sum())

    def per_task(
        self,
        logits: Float[Tensor, "batch time classes"],
        labels: Int[Tensor, "batch time"],
        task_id: Int[Tensor, " batch"],
    ) -> Float[Tensor, " tasks"]:
        """L_k of every task, without a task's focal factor; NaN for those that the batch does not have."""
        losses, present = self._tasks(*self._sequences(logits, labels, task_id), task_id)
        return losses.masked_fill(~present, torch.nan)

    def _sequences(
        self, logits: Tensor, labels: Tensor, task_id: Tensor
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Sum of the token losses of each sequence, and how many they are."""
        logits, labels = check_sequences(logits, labels, self.ignore_index)
        _check_task_id(task_id, len(labels), self.num_tasks)
        kept = labels != self.ignore_index
        safe = labels.where(kept, labels.new_zeros(()))
        against = log_odds_against(logits.flatten(0, 1), safe.flatten()).view(labels.shape)
        losses = -F.logsigmoid(-against)
        if self.focal == "token":
            losses = losses * self._factor(F.logsigmoid(against))
        return losses.where(kept, losses.new_zeros(())).sum(dim=1), kept.sum(dim=1)

    def _tasks(self, sums: Tensor, counts: Tensor, task_id: Tensor) -> tuple[Float[Tensor, " tasks"], Tensor]:
        """Mean loss of each task, 0 for one without tokens, and which have any."""
        if self.mode == "task_sample":
            sums, counts = _mean(sums, counts), (counts > 0).long()
        total = sums.new_zeros(self.num_tasks).index_add(0, task_id, sums)
        amount = counts.new_zeros(self.num_tasks).index_add(0, task_id, counts)
        return _mean(total, amount), amount > 0

    def _factor(self, log_q: Tensor) -> Tensor:
        """(1 - p)^gamma from log(1 - p)."""
        return torch.exp(self.gamma * (log_q.detach() if self.detach_focal else log_q))


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 where there is nothing."""
    return torch.where(count > 0, total / count.where(count > 0, count.new_ones(())), total.new_zeros(()))


def _check_task_id(task_id: Tensor, batch: int, num_tasks: int) -> None:
    if task_id.shape != (batch,) or task_id.is_floating_point() or task_id.dtype == torch.bool:
        raise ValueError(
            f"task_id must be ({batch},) integers, got {tuple(task_id.shape)} of {task_id.dtype}."
        )
    if values_visible(task_id) and not 0 <= int(task_id.min()) <= int(task_id.max()) < num_tasks:
        raise ValueError(
            f"task_id must lie in [0, {num_tasks}), got {int(task_id.min())} to {int(task_id.max())}."
        )


class ValidationBalancer(nn.Module):
    """Task weights that go to the tasks whose validation loss falls slowest.

    weights = softmax(xi). After each validation, xi takes an Adam step against
    (d softmax(xi) / d xi)^T delta + decay xi, delta_k = log(previous loss of k) - log(loss of k): the update
    of FAMO (Liu et al., NeurIPS 2023, arXiv:2306.03792) on validation losses. Its learning rate and decay
    are the defaults. The state_dict holds all of it.

    loss.task_weights.copy_(balancer.update(validation_losses))
    """

    previous: Tensor

    def __init__(self, num_tasks: int, lr: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__()
        check_positive(num_tasks=num_tasks, lr=lr)
        self.xi = nn.Parameter(torch.zeros(num_tasks))
        self.optimizer = torch.optim.Adam([self.xi], lr=lr, weight_decay=decay)
        self.register_buffer("previous", torch.full((num_tasks,), torch.nan))

    @property
    def weights(self) -> Float[Tensor, " tasks"]:
        """The weights as they are, of sum 1."""
        return self.xi.detach().softmax(dim=0)

    def update(self, losses: Float[Tensor, " tasks"]) -> Float[Tensor, " tasks"]:
        """Learn from one validation and return the new weights; a task without a number (NaN) keeps its
        last one. The first validation changes nothing. Raises ValueError for another number of losses, or
        one that is not positive."""
        if losses.shape != self.previous.shape or bool((losses <= 0).any()):
            raise ValueError(f"losses must be {len(self.previous)} positive numbers, got {losses}.")
        losses = losses.detach().to(self.previous)
        delta = (self.previous.log() - losses.log()).nan_to_num(0.0)
        if not bool(self.previous.isnan().all()):
            with torch.enable_grad():
                (self.xi.grad,) = torch.autograd.grad(self.xi.softmax(dim=0), self.xi, grad_outputs=delta)
            self.optimizer.step()
        self.previous.copy_(losses.where(losses.isfinite(), self.previous))
        return self.weights

    def get_extra_state(self) -> dict[str, Any]:
        return copy.deepcopy(self.optimizer.state_dict())

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class Packed(NamedTuple):
    """Rows of several samples of one task each, as a causal language model takes them."""

    input_ids: Int[Tensor, "rows length"]
    labels: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]
    task_id: Int[Tensor, " rows"]


def pack(
    samples: Sequence[tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"], int]],
    length: int,
    pad: int = 0,
    ignore_index: int = -100,
) -> Packed:
    """Rows of `length` filled with samples (tokens, labels, task) of one task each, in their order.

    Labels are tokens to be predicted from those before, as Hugging Face models take them; the first of each
    sample and the padding get `ignore_index`, and positions start at 0 with each sample. Attention still
    sees the samples before in the row unless the model masks by positions. Raises ValueError for a sample
    that is empty, longer than `length`, or with another number of labels.
    """
    rows: list[tuple[int, list[tuple[Tensor, Tensor]]]] = []
    room: dict[int, tuple[int, int]] = {}  # task -> its last row, and what is left of it
    for tokens, labels, task in samples:
        if tokens.shape != labels.shape or not 0 < len(tokens) <= length:
            raise ValueError(
                f"a sample must be 1 to {length} tokens with a label each, got {tuple(tokens.shape)} and "
                f"{tuple(labels.shape)}."
            )
        row, left = room.get(task, (-1, 0))
        if len(tokens) > left:
            row, left = len(rows), length
            rows.append((task, []))
        rows[row][1].append((tokens, labels))
        room[task] = row, left - len(tokens)
    packed = Packed(
        torch.full((len(rows), length), pad),
        torch.full((len(rows), length), ignore_index),
        torch.zeros(len(rows), length, dtype=torch.int64),
        torch.tensor([task for task, _ in rows]),
    )
    for row, (_, members) in enumerate(rows):
        at = 0
        for tokens, labels in members:
            span = slice(at, at + len(tokens))
            packed.input_ids[row, span] = tokens
            packed.labels[row, span] = labels
            packed.labels[row, at] = ignore_index
            packed.position_ids[row, span] = torch.arange(len(tokens))
            at += len(tokens)
    return packed
