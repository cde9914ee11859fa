"""177: tensor attention finds three tokens that sum to 0, which ordinary attention does not learn.

Set beforehand: Match-3, is x_i + x_j + x_l = 0 mod 37 for some j and l among 8 tokens, half of the answers
yes; weights written down, from cos(a + b + c) as four products of three; ordinary attention and an MLP with
at least 4 times the parameters, trained; seeds 0-2; both thresholds.
Left open, and chosen before the first run:
- The answer is asked for the first token; j and l may be any, also the same.
- Written down: queries, keys and values of 4 numbers, scale 20,000, values cos and sin of b + c, which the
  answer compares with -a. Test: 4,000 sequences.
- Trained: tokens as vectors of 64, 4 heads of softmax attention, an MLP of 256, binary cross-entropy, AdamW
  at 0.001 (the best of 0.001, 0.003 and 0.01 on seed 7) with the cosine schedule, 1,500 batches of 256 new
  rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import SoftmaxAttention, tensor_attention
from logitkit.claims.base import Check, Trial, claim, over_seeds

TOKENS, MODULUS, SCALE, STEPS, RATE = 8, 37, 20_000.0, 1500, 1e-3


@claim(
    "attention",
    "tensor",
    statement="Written-down weights of one layer of tensor attention solve Match-3; a trained layer of"
    " ordinary attention with an MLP stays below 85 %.",
    seeds=range(3),
)
def tensor(trial: Trial) -> list[Check]:
    exact, trained = [], []
    for seed in trial.seeds:
        x, y = match3(trial.few(4000, 100), torch.Generator().manual_seed(1000 + seed))
        exact.append(100 * (constructed(x) == y).double().mean().item())
        with torch.no_grad():
            model = ordinary(seed, trial.few(STEPS, 5))
            trained.append(100 * ((model(x) > 0) == y).double().mean().item())
    return [
        over_seeds("accuracy of the weights written down, percent", exact, ">=", 100, {"exact": exact}),
        over_seeds("accuracy of ordinary attention with an MLP, percent", trained, "<=", 85,
                   {"trained": trained}),
    ]  # fmt: skip


def match3(rows: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (rows, TOKENS) and whether the first token has a match, which half of them have."""
    kept: dict[bool, list[Tensor]] = {True: [], False: []}
    while any(sum(map(len, found)) < rows // 2 for found in kept.values()):
        x = torch.randint(MODULUS, (rows, TOKENS), generator=g)
        sums = x[:, :1, None] + x[:, :, None] + x[:, None, :]
        has = (sums % MODULUS == 0).any((1, 2))
        kept[True].append(x[has])
        kept[False].append(x[~has])
    yes, no = (torch.cat(kept[label])[: rows // 2] for label in (True, False))
    return torch.cat([yes, no]), torch.arange(rows // 2 * 2) < rows // 2


def constructed(x: Tensor) -> Tensor:
    """The answers of one layer of tensor attention.

    cos(a + b + c) is largest, 1, where the three sum to 0. What is attended to gives cos and sin of b + c,
    and the answer is yes if they point to -a.
    """
    a = 2 * math.pi / MODULUS * x.double()
    cos, sin = a.cos(), a.sin()
    query = SCALE * torch.stack([cos, -cos, -sin, -sin], -1)
    first, second = torch.stack([cos, sin, cos, sin], -1), torch.stack([cos, sin, sin, cos], -1)
    # cos b cos c, sin b sin c, sin b cos c, cos b sin c
    values = torch.stack([cos, sin, sin, cos], -1), torch.stack([cos, sin, cos, sin], -1)
    found = tensor_attention(query[:, :1], [first, second], values)[:, 0]
    along, across = found[:, 0] - found[:, 1], found[:, 2] + found[:, 3]
    closeness = cos[:, 0] * along - sin[:, 0] * across  # cos(a + b + c)
    return closeness > (1 + math.cos(2 * math.pi / MODULUS)) / 2


class Ordinary(nn.Module):
    """Softmax attention and an MLP; the logit of the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODULUS, 64)
        self.attention = SoftmaxAttention(64, 4)
        self.mlp = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        return self.mlp((h + self.attention(h)[0])[:, 0])[:, 0]


@torch.enable_grad()
def ordinary(seed: int, steps: int, rate: float = RATE) -> Ordinary:
    torch.manual_seed(seed)
    model, g = Ordinary(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.5 * rate * (1 + math.cos(math.pi * step / steps))
        x, y = match3(256, g)
        loss = F.binary_cross_entropy_with_logits(model(x), y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
