"""135: a vision transformer with GR-KAN in the place of its MLPs is as accurate, and a trained one converts.

Set beforehand: TINY_VIT, hidden layers of equal width; a conversion without training; seeds 0-2; both
thresholds.
Left open, and chosen before the first run:
- Both arms have the settings of TINY_VIT, which are the best of a grid for the plain network; AdamW with
  torch's weight decay on all parameters, those of the activations too.
- The networks converted are those of the plain arm, with fits on [-8, 8].
"""

from __future__ import annotations

import copy
from typing import Any

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference
from logitkit.claims.fixtures import TINY_VIT
from logitkit.engine import Prepared, Recipe
from logitkit.engine.network import Network
from logitkit.layers import convert_mlp


@claim(
    "layers",
    "kat",
    statement="GR-KAN costs a vision transformer on digits at most half a point, and putting it into a"
    " trained one at most a point.",
    seeds=range(3),
    note="Runs at the rate of TINY_VIT scatter: 61 to 81 % with the plain network, 41 to 77 % with GR-KAN,"
    " whose coefficients of fifth powers start below 1e-3. At a rate of 1e-3 (seed 0) it is 77.2 % with"
    " GR-KAN and 79.4 % without.",
)
def kat(trial: Trial) -> list[Check]:
    scores: dict[str, list[float]] = {"kat": [], "standard": [], "converted": []}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(data.load("digits"), seed))
        for layers in ("kat", "standard"):
            recipe = Recipe.of(**TINY_VIT, layers=layers, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network
            scores[layers].append(accuracy(network, prepared.test))
        scores["converted"].append(accuracy(converted(network), prepared.test))
    return [
        difference("test accuracy, points: GR-KAN minus MLP", ">=", -0.5,
                   kat=scores["kat"], standard=scores["standard"]),
        difference("test accuracy, points: converted minus as trained", ">=", -1.0,
                   converted=scores["converted"], standard=scores["standard"]),
    ]  # fmt: skip


def converted(network: Network) -> Network:
    """A copy whose MLPs are GR-KANs."""
    made = copy.deepcopy(network)
    blocks: Any = made.backbone.blocks
    for block in blocks:
        block.mlp = convert_mlp(block.mlp)
    return made
