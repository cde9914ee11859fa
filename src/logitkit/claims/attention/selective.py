"""024: a query that says how many keys it is about, which only a temperature can tell apart from what about.

Set beforehand: 32 random unit keys in R^16 with values in R^4; half of the queries are a key's direction and
ask for its value, the others one and ask for the mean of all values, as one of two further coordinates says;
one layer, heads of one size, a = -4 at the start, 1,500 steps; seeds 0-2; the threshold.
Left open, and chosen before the first run:
- Tokens are 22 numbers: direction, kind of query, value. One head of 22; the answer is the first 4 numbers
  of its output. Every step has 64 new sets of keys, each with 16 queries of either kind at random; the test
  has 512.
- AdamW with the cosine schedule at 0.01, the best of 0.001, 0.003 and 0.01 for softmax attention on seed 7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.attention import MultiheadAttention, SelectiveAttention, SoftmaxAttention
from logitkit.claims.base import Check, Trial, claim, ratio

KEYS, DIM, OUT, QUERIES, STEPS, RATE = 32, 16, 4, 16, 1500, 1e-2
TOKEN = DIM + 2 + OUT


@claim(
    "attention",
    "selective",
    statement="Where some queries ask for one value and others for the mean of all, selective attention has a"
    " quarter of the error of softmax attention.",
    seeds=range(3),
)
def selective(trial: Trial) -> list[Check]:
    arms = {"selective": SelectiveAttention, "softmax": SoftmaxAttention}
    error = {
        arm: [trained(make, seed, trial.few(STEPS, 20)) for seed in trial.seeds] for arm, make in arms.items()
    }
    return [ratio("test error, mean square: selective over softmax attention", "<=", 0.25, **error)]


def trained(make: type[MultiheadAttention], seed: int, steps: int, rate: float = RATE) -> float:
    """The test error after training."""
    torch.manual_seed(seed)
    layer = make(TOKEN, 1)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * step / steps))
        queries, keys, target = problems(64, g)
        loss = F.mse_loss(layer(queries, keys)[0][..., :OUT], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        queries, keys, target = problems(512, g)
        return F.mse_loss(layer(queries, keys)[0][..., :OUT], target).item()


def problems(sets: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (sets, QUERIES, TOKEN), keys (sets, KEYS, TOKEN) and answers (sets, QUERIES, OUT)."""
    directions = F.normalize(torch.randn(sets, KEYS, DIM, generator=g), dim=-1)
    values = torch.randn(sets, KEYS, OUT, generator=g)
    keys = torch.cat([directions, torch.zeros(sets, KEYS, 2), values], -1)
    which = torch.randint(KEYS, (sets, QUERIES, 1), generator=g)
    kind = torch.randint(2, (sets, QUERIES), generator=g)
    about = directions.gather(1, which.expand(-1, -1, DIM))
    queries = torch.cat([about, F.one_hot(kind, 2), torch.zeros(sets, QUERIES, OUT)], -1)
    one = values.gather(1, which.expand(-1, -1, OUT))
    return queries, keys, torch.where(kind[..., None] == 0, one, values.mean(1, keepdim=True))
