"""212: on signals that may lie in any patch, weight sharing saves a factor of examples, and so does locality.

Set beforehand: 16 patches of 16 numbers, noise 0.2, training rows in powers of two up to 8,192, full-batch
gradient descent, the threshold tuned on validation rows, 10 % error; more than 8,192 where it is never
reached; medians over seeds 0-4; both thresholds.
Left open, and chosen before the first run:
- 300 steps; thresholds 0, 0.1 and 0.3 and step sizes 0.3, 1 and 3 for every network, the best on as many
  validation rows as there are training rows; 4,000 test rows.
- From 8 rows. Never reached counts as 16,384.
"""

from __future__ import annotations

import statistics

from logitkit.claims.base import Check, Trial, claim
from logitkit.data.base import seeded
from logitkit.theory.dsd import KINDS, Signals, dsd, sample_complexity

PATCHES, SIZE, NOISE, NEVER = 16, 16, 0.2, 16_384


@claim(
    "theory",
    "dsd",
    statement="A locally connected network needs at least 4 times the examples of a convolutional one for"
    " 10 % error, and a fully connected one at least twice those of the locally connected.",
    seeds=range(5),
)
def separation(trial: Trial) -> list[Check]:
    sizes = [2**p for p in range(3, trial.few(14, 6))]
    needed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in trial.seeds:
        signal = dsd(1, PATCHES, SIZE, NOISE, seeded("dsd", seed, "signal")).signal

        def draw(n: int, part: int, seed: int = seed, signal: object = signal) -> Signals:
            g = seeded("dsd", seed, n, part)
            return dsd(n, PATCHES, SIZE, NOISE, g, signal=signal)  # type: ignore[arg-type]

        for kind in KINDS:
            found = sample_complexity(draw, kind, PATCHES, sizes, steps=trial.few(300, 30), seed=seed)
            needed[kind].append(float(NEVER if found is None else found))
    middle = {kind: statistics.median(values) for kind, values in needed.items()}
    return [
        Check("examples for 10 % error, medians: locally connected over convolutional",
              middle["lcn"] / middle["cnn"], ">=", 4, arms={k: needed[k] for k in ("lcn", "cnn")}),
        Check("examples for 10 % error, medians: fully connected over locally connected",
              middle["fcn"] / middle["lcn"], ">=", 2, arms={k: needed[k] for k in ("fcn", "lcn")}),
    ]  # fmt: skip
