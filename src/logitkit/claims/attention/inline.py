"""154: InLine attention learns what differs between a query and three times it, and is as good as softmax.

Set beforehand: one layer without biases, 16 random keys and values per example, queries in pairs u and 3u,
target vbar + cov(k, v)^T q; the small vision transformer on digits (`TINY_VIT`) for every arm; seeds 0-2; all
thresholds.
Left open, and chosen before the first run:
- The layer: 16 features, one head, projections of queries, keys, values and output, learned; 500 steps of
  AdamW at 0.01 with the cosine schedule on 64 fresh examples each. The error is that of 1,000 examples.
- InLine attention is without its local term there, where tokens have no neighbours, and with it on digits.
- The within-pair variance is the mean of a quarter of the squared difference, the least error that one answer
  to both can have.
- relu linear attention divides by the sum of its weights plus 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.attention import MultiheadAttention, inline_attention
from logitkit.claims.base import Check, Trial, claim, difference, ratio
from logitkit.claims.fixtures import digits_accuracy
from logitkit.engine.run import isolated
from logitkit.models import ViT

DIM, KEYS, STEPS = 16, 16, 500


@claim(
    "attention",
    "inline",
    statement="InLine attention fits a target that differs between u and 3u, to which relu linear attention"
    " has one answer; in a small vision transformer on digits it is as good as softmax and better than relu"
    " linear attention.",
    seeds=range(3),
)
def inline(trial: Trial) -> list[Check]:
    error: dict[str, list[float]] = {"inline": [], "relu linear": [], "within pairs": []}
    for seed in trial.seeds:
        for arm, mix in (("inline", inline_attention), ("relu linear", relu_linear)):
            found, spread = pair_error(mix, seed, trial.few(STEPS, 20))
            error[arm].append(found)
        error["within pairs"].append(spread)

    arms = {
        "inline": digits_accuracy(trial, attention="inline"),
        "softmax": digits_accuracy(trial),
        "relu linear": digits_accuracy(trial, model=ReluViT),
    }
    return [
        ratio("mean squared error: relu linear attention over the variance within pairs", ">=", 0.99,
              **{arm: error[arm] for arm in ("relu linear", "within pairs")}),
        ratio("mean squared error: InLine attention over the variance within pairs", "<=", 0.05,
              **{arm: error[arm] for arm in ("inline", "within pairs")}),
        difference("test accuracy, points: InLine minus softmax", ">=", -1,
                   inline=arms["inline"], softmax=arms["softmax"]),
        difference("test accuracy, points: InLine minus relu linear attention", ">", 0,
                   **{arm: arms[arm] for arm in ("inline", "relu linear")}),
    ]  # fmt: skip


def relu_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = ops.linear_attention(q, k, v, feature=F.relu, eps=1e-6)
    assert isinstance(mixed, Tensor)
    return mixed


class ReluLinear(MultiheadAttention):
    takes = frozenset()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return relu_linear(query, key, value)


class ReluViT(ViT):
    """The model of `TINY_VIT` with relu linear attention."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape, patch=1, dim=32, depth=2, heads=4, attention=ReluLinear)


class Layer(nn.Module):
    """Attention of one head without biases."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        projected = self.q(query)[:, None], self.k(key)[:, None], self.v(value)[:, None]
        return self.out(self.mix(*projected)[:, 0])


def examples(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries u and 3u, keys, values and targets."""
    u, key, value = (torch.randn(n, count, DIM, generator=g) for count in (1, KEYS, KEYS))
    query = torch.cat([u, 3 * u], 1)
    mean = value.mean(1, keepdim=True)
    covariance = (key - key.mean(1, keepdim=True)).mT @ (value - mean) / KEYS
    return query, key, value, mean + query @ covariance


def pair_error(mix: Callable[[Tensor, Tensor, Tensor], Tensor], seed: int, steps: int) -> tuple[float, float]:
    """The layer's mean squared error after training, and the variance of targets within pairs."""
    with isolated(1):
        torch.manual_seed(seed)
        layer = Layer(mix)
        g = torch.Generator().manual_seed(1000 + seed)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            *inputs, target = examples(64, g)
            loss = F.mse_loss(layer(*inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        *inputs, target = examples(1000, g)
        with torch.no_grad():
            error = F.mse_loss(layer(*inputs), target)
        return error.item(), target.var(1, correction=0).mean().item()
