"""151: without attention a vision transformer on digits loses little, and on relative positions a lot.

Set beforehand: digits in patches of 2x2, equal depth and width, a position embedding; two marks whose
relative position is the label; at most 0.65 of the parameters for the second; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- Width 32, depth 2, hidden layers of 128 in every arm, no dropout; TINY_VIT's batches, rate and epochs.
- `marks` of 8x8 pixels at least 4 apart in the same patches; batches of 32 at 5e-3 for 20 epochs, the better
  of two rates for attention (seed 7: 75.5 %).
- Parameters are those of the whole backbone.
"""

from __future__ import annotations

from typing import Any

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.claims.fixtures import TINY_VIT
from logitkit.models import Activator

VIT = "vit(patch=2,dim=32,depth=2,heads=4)"
FULL = "activator(patch=2,dim=32,depth=2,hidden=128,position=True)"
GLU = "activator(patch=2,dim=32,depth=2,hidden=128,position=True,ffn=False)"
MARKS: dict[str, Any] = {"batch_size": 32, "lr": 5e-3, "warmup": 0.1, "epochs": 20}


@claim(
    "layers",
    "activator",
    statement="Without attention a vision transformer on digits is at most 4 points worse, and 1.5 more"
    " without its feed-forward parts; on the relative position of two marks it is 15 points worse.",
    seeds=range(3),
)
def activator(trial: Trial) -> list[Check]:
    marks = data.load("marks:size=8,distance=4")

    def digits(model: str) -> list[float]:
        runs = [trial.run(seed, **{**TINY_VIT, "model": model}) for seed in trial.seeds]
        return [100 * run.metrics["accuracy"] for run in runs]

    def relative(model: str) -> list[float]:
        runs = [trial.run(seed, marks, model=model, **MARKS) for seed in trial.seeds]
        return [100 * run.metrics["accuracy"] for run in runs]

    vit, full, glu = digits(VIT), digits(FULL), digits(GLU)
    share = size(False) / size(True)
    return [
        difference("test accuracy, points: Activator minus vision transformer", ">=", -4,
                   activator=full, vit=vit),
        difference("test accuracy, points: Activator without feed-forward parts minus with", ">=", -1.5,
                   glu=glu, activator=full),
        over_seeds("parameters without feed-forward parts over with", [share], "<=", 0.65, {}),
        difference("relative position of two marks, points: vision transformer minus Activator", ">=", 15,
                   vit=relative(VIT), activator=relative(FULL)),
    ]  # fmt: skip


def size(ffn: bool) -> int:
    """Parameters of the backbone."""
    model = Activator((1, 8, 8), 2, 32, 128, patch=2, ffn=ffn, position=True)
    return sum(p.numel() for p in model.parameters())
