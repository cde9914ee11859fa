"""What the engine costs over a bare PyTorch loop, on the digits MLP. The goal is at most 1.15x.

All arms train the same network on the same tensors with AdamW, a cosine schedule and per-epoch validation,
one thread each, interleaved in one process; ratios are taken per round. `bare` is the loop as people write
it;
`bare_fused` also passes `fused=True` to the optimiser, as the engine does, and so shows what the engine's
checks and bookkeeping alone cost.

    python benchmarks/engine_overhead.py [ROUNDS]
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from functools import partial

import torch
from torch import nn

from logitkit import data
from logitkit.engine import Prepared, Recipe, Trainer


def bare(recipe: Recipe, prepared: Prepared, fused: bool = False) -> float:
    """Seconds that an ordinary loop takes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, fused=fused)
    x, y = prepared.train
    x_val, y_val = prepared.val
    epoch_steps = -(-len(y) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epoch_steps * recipe.epochs)
    started = time.perf_counter()
    for _ in range(recipe.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(y)).split(recipe.batch_size):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            scores = model(x_val)
            (scores.argmax(1) == y_val).float().mean().item()
            nn.functional.cross_entropy(scores, y_val).item()
    return time.perf_counter() - started


def engine(recipe: Recipe, prepared: Prepared) -> float:
    """Seconds that the engine takes, building the network included."""
    started = time.perf_counter()
    Trainer(recipe, prepared).run()
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    torch.set_num_threads(1)
    recipe = Recipe.of(epochs=30)
    prepared = Prepared.of(data.split(data.load("digits"), 0))
    arms = {"bare": bare, "bare_fused": partial(bare, fused=True), "engine": engine}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm(recipe, prepared)
    for i in range(rounds):
        for name in [*arms][i % 3 :] + [*arms][: i % 3]:
            times[name].append(arms[name](recipe, prepared))

    def ratio(peer: str) -> float:
        return round(statistics.median(e / p for e, p in zip(times["engine"], times[peer], strict=True)), 3)

    result = {
        "benchmark": "engine_overhead",
        "ratio": ratio("bare"),
        "goal": 1.15,
        "ratio_to_bare_fused": ratio("bare_fused"),
        "seconds": {name: round(statistics.median(t), 4) for name, t in times.items()},
        "rounds": rounds,
        "torch": torch.__version__,
        "machine": platform.platform(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
