"""222: columns of a reversible network hold more of the label the later they come.

Set beforehand: SHAPES, a linear probe on level 3 of columns 1 and 4; a single column of as many parameters;
seeds 0-2; both thresholds.
Left open, and chosen before the first run:
- `model=revcol` of 4 columns, trained by the loss of the last alone; the single column has the same widths
  and 5, 5, 5 and 6 blocks. AdamW, batches of 32, cosine schedule after a tenth of warm-up, 10 epochs at 4e-3,
  the better of two rates for the single column (seed 7, 12 epochs: 25.8 % at 1e-3, 30.8 at 4e-3).
- The probe is scikit-learn's logistic regression (C = 1) on the standardised means over positions of the
  training rows; its accuracy is on the test rows.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds
from logitkit.engine import Prepared, Recipe
from logitkit.models import RevCol

COLUMNS = "revcol(columns=4,save_memory=False)"  # the gradients are the same, the time is not
SINGLE = "revcol(columns=1,depths=(5,5,5,6))"
SETTINGS: dict[str, Any] = {"epochs": 10, "batch_size": 32, "lr": 4e-3, "warmup": 0.1}


@claim(
    "models",
    "revcol",
    statement="On shapes a linear probe of column 4 is 5 points better than one of column 1, and the network"
    " at most half a point worse than a single column of as many parameters.",
    seeds=range(3),
)
def revcol(trial: Trial) -> list[Check]:
    probes: dict[str, list[float]] = {"column 4": [], "column 1": []}
    scores: dict[str, list[float]] = {"columns": [], "single": []}
    sizes = {}
    for seed in trial.seeds:
        shapes = data.load(f"shapes:n={trial.few(2500, 300)}+seed={seed}")
        prepared = Prepared.of(data.split(shapes, seed))
        for arm, model in (("single", SINGLE), ("columns", COLUMNS)):
            recipe = Recipe.of(model=model, **SETTINGS, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network
            scores[arm].append(accuracy(network, prepared.test))
            sizes[arm] = sum(p.numel() for p in network.parameters())
        assert isinstance(network.backbone, RevCol)
        train, test = (pooled(network.backbone, rows[0]) for rows in (prepared.train, prepared.test))
        for name, t in (("column 4", 3), ("column 1", 0)):
            probes[name].append(probe(train[t], prepared.train[1], test[t], prepared.test[1]))
    share = sizes["single"] / sizes["columns"]
    return [
        difference("accuracy of a linear probe, points: column 4 minus column 1", ">=", 5, **probes),
        difference("test accuracy, points: four columns minus a single one", ">=", -0.5, **scores),
        over_seeds("parameters of the single column over four", [share], ">=", 0.95, {}),
    ]  # fmt: skip


@torch.no_grad()
def pooled(model: RevCol, x: Tensor) -> list[Tensor]:
    """The means of level 3 of each column over positions."""
    batches = [
        [column[3].mean((2, 3)) for column in model.net.several(model.stem_map(each), range(4))]
        for each in x.split(250)
    ]
    return [torch.cat(each) for each in zip(*batches, strict=True)]


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return 100 * float(model.fit(x.numpy(), y.numpy()).score(x_test.numpy(), y_test.numpy()))
