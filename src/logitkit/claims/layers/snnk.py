"""048: a network in one matrix, solved for in closed form, is nearly as accurate as a trained one.

Set beforehand: digits, 256 features, MLP 64-256-10; at least 5 times fewer trainable parameters and no
backpropagation; seeds 0-2; both thresholds.
Left open, and chosen before the first run:
- Targets are one-hot rows, and the class with the largest output is the answer. Independent rows of G, and l2
  the best of 1e-4, 1e-3, .., 10 on the validation rows, the smallest of equal ones.
- The MLP is trained by the engine's defaults (AdamW, cosine schedule, 30 epochs).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds
from logitkit.engine import Prepared, Recipe
from logitkit.engine.run import isolated
from logitkit.layers import FullyBundled

RIDGES = [10.0**k for k in range(-4, 2)]


@claim(
    "layers",
    "snnk",
    statement="On digits a fully bundled network of 256 features, solved for in closed form, is within 2.5"
    " points of a trained MLP with 5 times its parameters.",
    seeds=range(3),
)
def snnk(trial: Trial) -> list[Check]:
    scores: dict[str, list[float]] = {"bundled": [], "mlp": []}
    sizes = {}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(data.load("digits"), seed))
        with isolated(1):
            bundled = fitted(prepared, seed)
            scores["bundled"].append(100 * hits(bundled, prepared.test))
        recipe = Recipe.of(model="mlp(hidden=(256,))", seed=seed, split_seed=seed)
        network = trial.train(prepared, recipe).network
        scores["mlp"].append(accuracy(network, prepared.test))
        sizes = {
            "mlp": sum(p.numel() for p in network.parameters()),
            "bundled": sum(p.numel() for p in bundled.parameters()),
        }
    share = sizes["mlp"] / sizes["bundled"]
    return [
        difference("test accuracy, points: fully bundled minus MLP", ">=", -2.5, **scores),
        over_seeds("trainable parameters, MLP over fully bundled", [share], ">=", 5, {}),
    ]  # fmt: skip


def fitted(prepared: Prepared, seed: int) -> FullyBundled:
    """The fit whose l2 is best on the validation rows; all have the same features."""
    x, y = prepared.train
    targets = F.one_hot(y, prepared.shape.num_classes).to(x)

    def fit(l2: float) -> FullyBundled:
        torch.manual_seed(seed)
        return FullyBundled(x[0].numel(), 256, l2).fit(x.flatten(1), targets)

    return max((fit(l2) for l2 in RIDGES), key=lambda model: hits(model, prepared.val))


def hits(model: FullyBundled, rows: tuple[torch.Tensor, torch.Tensor]) -> float:
    x, y = rows
    return (model(x.flatten(1)).argmax(1) == y).double().mean().item()
