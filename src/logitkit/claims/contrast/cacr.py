"""062: without labels and with classes that are unequally frequent, weighing distant positives and close
negatives more gives better features than weighing all alike, and than SimCLR.

Set beforehand: digits of which class c keeps 110 x 0.72^c, at least 8; batches of 64, 800 steps, 4 views; an
encoder 64-256-64 with a projector 64-32; views are moved by up to a pixel, times 0.7 to 1.3, plus noise of
0.15; a linear probe on 15 labels of each class, seeds 0-3; 2.5 points above no weights and 1 above SimCLR.
Left open, and chosen before the first run:
- Pixels in [0, 1]; Adam at 1e-3; ReLU in the encoder and none between it and the projector, which is linear.
  SimCLR: two views, temperature 0.5.
- The probe is logistic regression on the encoder's 64 features, standardised, on 15 rows of each class of
  those not trained on; the test are all others.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference
from logitkit.contrast import CACRLoss, SimCLRLoss
from logitkit.data.base import seeded
from logitkit.engine.run import isolated
from logitkit.ops import random_views

BATCH, STEPS, LABELS = 64, 800, 15


@claim(
    "contrast",
    "cacr",
    statement="On digits of unequal frequency, a linear probe of CACR's features is 2.5 points above that of"
    " the unweighted loss and 1 point above SimCLR's.",
    seeds=range(4),
    note="The weights are worth 3.8 points, and CACR is 0.4 above SimCLR (95 % interval -0.8 to 1.7), where 1"
    " was asked for: with batches of 64 digits and two small views SimCLR is 3 points above the unweighted"
    " loss by itself.",
)
def cacr(trial: Trial) -> list[Check]:
    steps = trial.few(STEPS, 20)
    arms: dict[str, CACRLoss | SimCLRLoss] = {
        "cacr": CACRLoss(views=4),
        "no weights": CACRLoss(t_pos=0, t_neg=0, views=4),
        "simclr": SimCLRLoss(),
    }
    with isolated(1):
        points = {name: [probed(seed, loss, steps) for seed in trial.seeds] for name, loss in arms.items()}
    return [
        difference("probe accuracy, points: CACR minus without weights", ">=", 2.5,
                   cacr=points["cacr"], none=points["no weights"]),
        difference("probe accuracy, points: CACR minus SimCLR", ">=", 1.0,
                   cacr=points["cacr"], simclr=points["simclr"]),
    ]  # fmt: skip


def probed(seed: int, loss: CACRLoss | SimCLRLoss, steps: int) -> float:
    """Percent of test rows that the probe has right."""
    x, y, trained, labelled, test = rows(seed)
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    network = nn.Sequential(encoder, nn.Linear(64, 32))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        batch = x[trained[torch.randperm(len(trained))[:BATCH]]]
        views = random_views(batch, loss.views)
        value = loss(network(views.flatten(0, 1)).unflatten(0, views.shape[:2]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        features = encoder(x).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(features[labelled], y[labelled])
    return 100 * float(np.mean(probe.predict(features[test]) == y[test].numpy()))


def rows(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels; the rows trained on, those of the probe, and those of the test."""
    digits = data.load("digits")
    assert isinstance(digits.x, Tensor)
    x, y = digits.x.float() / digits.x.max(), digits.y
    order = torch.randperm(len(x), generator=seeded("cacr", seed))
    trained, labelled, test = [], [], []
    for c in range(10):
        of_class = order[y[order] == c]
        kept = max(8, round(110 * 0.72**c))
        trained.append(of_class[:kept])
        labelled.append(of_class[kept : kept + LABELS])
        test.append(of_class[kept + LABELS :])
    return x, y, torch.cat(trained), torch.cat(labelled), torch.cat(test)
