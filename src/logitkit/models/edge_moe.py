"""Edge-MoE: a vision transformer for several tasks whose experts are read one after the other, and the order
of work that makes it cheap where memory is slow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.models.vit import ViT
from logitkit.registry import Choice, Whole, part

TABLE_END = 5.5
"""Where gelu(x) is relu(x) to 1e-7."""


def online_softmax(scores: Iterable[Float[Tensor, "*batch"]]) -> list[Float[Tensor, "*batch"]]:
    """The softmax over scores that come one after the other, by one pass for their maximum m and the sum of
    exp(a - m) together, and one for the weights. Source: arXiv:2305.18691, section IV-B."""
    kept = list(scores)
    if not kept:
        raise ValueError("softmax needs at least one score, got 0.")
    top, total = kept[0], torch.ones_like(kept[0])
    for a in kept[1:]:
        higher = torch.maximum(top, a)
        total = total * (top - higher).exp() + (a - higher).exp()
        top = higher
    return [(a - top).exp() / total for a in kept]


def table_gelu(x: Float[Tensor, "*batch"], step: float = 1 / 32) -> Float[Tensor, "*batch"]:
    """relu(x) - delta(|x|), delta(a) = a (1 - Phi(a)) from a table up to 5.5 in steps of `step`, linear
    between its entries: gelu to 1e-4. Source: arXiv:2305.18691, section IV-C."""
    if not 0 < step <= TABLE_END:
        raise ValueError(f"step must lie in (0, {TABLE_END}], got {step}.")
    knots = step * torch.arange(round(TABLE_END / step) + 1, dtype=torch.float64)
    table = (knots * torch.special.ndtr(-knots)).to(x)
    at = (x.abs() / step).clamp(max=len(table) - 1)
    left = at.detach().long().clamp(max=len(table) - 2)
    delta = torch.lerp(table[left], table[left + 1], at - left)
    return x.relu() - delta * (x.abs() < TABLE_END)


class Step(NamedTuple):
    """What is read at one step of `attention_schedule`, and the (query, key) pairs that meet."""

    key: int
    query: int | None
    pairs: tuple[tuple[int, int], ...]


def attention_schedule(n: int, p: int) -> list[Step]:
    """Attention of n queries to n keys with p queries at hand: keys pass in a circle, and query j of a block
    comes in as key j passes, so that a step reads one key and at most one query. Every pair meets once.

    Raises ValueError unless 1 <= p < n. Source: arXiv:2305.18691, section IV-A.
    """
    if not 1 <= p < n:
        raise ValueError(f"p must be at least 1 and below n, got {p} and {n}.")
    steps, held = [], [-1] * p
    for time in range(math.ceil(n / p) * n + p - 1):
        block, key = divmod(time, n)
        loaded = None
        if key < p:  # the place of query `key` of this block
            held[key] = block * p + key
            loaded = held[key] if held[key] < n else None
        pairs = tuple((query, key) for query in held if 0 <= query < n)
        steps.append(Step(key, loaded, pairs))
    return steps


class TaskMoE(nn.Module):
    """Feed-forward experts, of which each token sees the k best for its task, and which are worked through
    one by one: y = sum_{e in top k} g_e (W'_e gelu(W_e x + b_e) + b'_e), g the softmax over the k highest of
    the task's scores. `task` says whose scores.

    Each expert is used at most once per call, whatever the number of tokens, on all tokens in its queue.
    """

    def __init__(self, dim: int, hidden: int, experts: int = 16, k: int = 4, tasks: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"k must lie in [1, experts], got {k} of {experts} experts.")
        if min(dim, hidden, tasks) < 1:
            raise ValueError(f"dim, hidden and tasks must be at least 1, got {dim}, {hidden} and {tasks}.")
        self.k, self.task = k, 0
        self.gates = nn.Parameter(dim**-0.5 * torch.randn(tasks, experts, dim))
        # as nn.Linear
        self.up = nn.Parameter(dim**-0.5 * (2 * torch.rand(experts, hidden, dim) - 1))
        self.up_bias = nn.Parameter(dim**-0.5 * (2 * torch.rand(experts, hidden) - 1))
        self.down = nn.Parameter(hidden**-0.5 * (2 * torch.rand(experts, dim, hidden) - 1))
        self.down_bias = nn.Parameter(hidden**-0.5 * (2 * torch.rand(experts, dim) - 1))

    def route(
        self, x: Float[Tensor, "tokens dim"]
    ) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
        """The shares of the k experts of each token, and which they are."""
        scores, chosen = (x @ self.gates[self.task].mT).topk(self.k, -1)
        return scores.softmax(-1), chosen

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        tokens = x.flatten(0, -2)
        shares, chosen = self.route(tokens)
        y = torch.zeros_like(tokens)
        for expert in range(len(self.up)):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            h = F.gelu(F.linear(tokens[rows], self.up[expert], self.up_bias[expert]))
            out = F.linear(h, self.down[expert], self.down_bias[expert])
            y = y.index_add(0, rows, (shares[rows, place, None] * out).to(y.dtype))
        return y.view(x.shape)


class Traffic(NamedTuple):
    """How often experts are read for a batch, token by token and expert by expert, and the share of the
    experts' parameters that a token meets."""

    by_token: int
    by_expert: int
    share: float


@part(
    "edge_moe",
    "models",
    title="Edge-MoE: Memory-Efficient Multi-Task Vision Transformer Architecture with Task-level Sparsity via"
    " Mixture-of-Experts",
    paper="arXiv:2305.18691",
    number=138,
    tasks=("classification", "binary", "regression", "multilabel"),
    no_compile="how many tokens an expert gets depends on their values",
    search_space={"experts": Choice(4, 8, 16), "k": Whole(1, 4)},
)
class EdgeMoEViT(ViT):
    """A vision transformer with experts in every second block, chosen per token and task: more parameters at
    the cost of fewer, for several tasks in one network.

    Equation: `ViT`, with `TaskMoE` in the place of the feed-forward network in blocks 2, 4, ...: y =
    sum_{e in top k} g_e FFN_e(x), g = softmax over the k highest of the scores G_task x.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, dim), pooled to (batch, dim),
    unitless. `for_task(t)` chooses the gate of task t for the calls that follow. `traffic(x)` counts reads.

    Defaults: 16 experts, of which 4, each of a hidden width of 4 dim / k, so that a token costs what it
    costs in the dense network; one task; the rest as `ViT`.

    Raises: ValueError as `ViT`, for k outside [1, experts], or a task that there is not.

    Source: Sarkar, Liang, Fan, Wang, Hao, ICCAD 2023, arXiv:2305.18691, section III; gates as in M3ViT,
    arXiv:2210.14793.

    Not for: speed here: experts in turn save memory traffic, and are slower than one dense product.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        depth: int = 4,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        patch: int | None = None,
        *,
        experts: int = 16,
        k: int = 4,
        tasks: int = 1,
    ) -> None:
        super().__init__(input_shape, depth, dim, heads, dropout, patch)
        for block in list(self.blocks)[1::2]:
            block.mlp = TaskMoE(dim, max(1, 4 * dim // k), experts, k, tasks)

    def for_task(self, task: int) -> EdgeMoEViT:
        """Use the gates of this task from now on; returns self."""
        for moe in self.experts():
            if not 0 <= task < len(moe.gates):
                raise ValueError(f"task must be 0 to {len(moe.gates) - 1}, got {task}.")
            moe.task = task
        return self

    def experts(self) -> list[TaskMoE]:
        """The layers of experts."""
        return [m for m in self.modules() if isinstance(m, TaskMoE)]

    @torch.no_grad()
    def traffic(self, x: Float[Tensor, "batch channels height width"]) -> Traffic:
        """How often a forward pass of `x` reads experts, each time for one token, or for all in its queue."""
        chosen: list[Tensor] = []
        hooks = [
            moe.register_forward_pre_hook(lambda m, given: chosen.append(m.route(given[0].flatten(0, -2))[1]))
            for moe in self.experts()
        ]
        try:
            self.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        layers = self.experts()
        share = sum(moe.k / len(moe.up) for moe in layers) / max(len(layers), 1)
        return Traffic(sum(c.numel() for c in chosen), sum(len(c.unique()) for c in chosen), share)
