"""182: under fixed bins a tanh network loses information about its input late in training, a ReLU network
under bins that span its range does not: what is seen needs units that saturate.

Set beforehand: 12 bits, a label of linear and two pairwise terms above the median; 12-10-7-5-4-3-2, Adam at
2e-3, 300 epochs, 30 bins, 3 seeds; the last hidden layer; thresholds of 4 and 1.5 bits, and of 3 times for
the ratio of signal to noise of gradients.
Left open, and chosen before the first run:
- Batches of 256 of 85 % of the words; the plane is that of all words, looked at every 5 epochs.
- A fall is the largest I(X; T) at or after the first look with a training accuracy above 0.9, minus the last.
  A run that never gets there has no fall, NaN, and the check does not hold.
- ReLU: bins of the layer's range at that look.
- Gradients: mean over layers, over the batches of one epoch; the highest of the first 20 epochs over the mean
  of the last 20, looked at every 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from logitkit.claims import words
from logitkit.claims.base import Check, Trial, claim, over_seeds
from logitkit.engine.run import isolated
from logitkit.probe import FixedBins, InformationPlane, Known, gradient_snr

EVERY = 5


@claim(
    "probe",
    "information_plane",
    statement="A tanh network that has learned loses 4 bits of its input under fixed bins, the same with ReLU"
    " at most 1.5; the ratio of signal to noise of its gradients falls by a factor of 3.",
    seeds=range(3),
    note="Two of three tanh networks fall by 5 and 7 bits after they are 90 % right, the third by 3: of the"
    " 7.7 bits that it starts with, it has lost a third or more by then. No ReLU network falls by more than"
    " 1.2.",
)
def information_plane(trial: Trial) -> list[Check]:
    epochs = trial.few(300, 20)
    with isolated(1):
        tanh = [path(seed, nn.Tanh, FixedBins(), epochs) for seed in trial.seeds]
        relu = [path(seed, nn.ReLU, spanning, epochs) for seed in trial.seeds]
    falls = {"tanh": [fall for fall, _ in tanh], "relu": [fall for fall, _ in relu]}
    return [
        over_seeds("least fall of I(X; T) of tanh over seeds, bits", [min(falls["tanh"])], ">=", 4,
                   {"tanh": falls["tanh"]}),
        over_seeds("largest fall of I(X; T) of ReLU over seeds, bits", [max(falls["relu"])], "<=", 1.5,
                   {"relu": falls["relu"]}),
        over_seeds("signal to noise of tanh's gradients: early over late", [r for _, r in tanh], ">=", 3,
                   {"tanh": [r for _, r in tanh], "relu": [r for _, r in relu]}),
    ]  # fmt: skip


def spanning(t: Tensor, y: Tensor | None = None, x: Tensor | None = None) -> Known:
    """Fixed bins of the range that the layer has now."""
    low, high = float(t.amin()), float(t.amax())
    return FixedBins(low=low, high=high if high > low else low + 1)(t, y)


def path(
    seed: int, activation: Callable[[], nn.Module], estimator: Callable[..., Known], epochs: int
) -> tuple[float, float]:
    """The fall of I(X; T) in bits, and early over late signal to noise."""
    x, y = words.draw(seed)
    model = words.network(activation, seed)
    plane = InformationPlane(estimator, model, x, y, [words.LAST])
    learned: list[bool] = []
    ratios: list[tuple[int, float]] = []
    for epoch in words.training(x, y, model, epochs, seed):
        if epoch % EVERY == 0:
            plane.record(epoch)
            learned.append(words.accuracy_on_train(x, y, model) > 0.9)
            if epoch <= 20 or epoch > epochs - 20:
                ratios.append((epoch, signal_to_noise(model, x, y)))
    bits = plane.values[:, 0, 0]
    fall = float(bits[learned.index(True) :].max() - bits[-1]) if any(learned) else math.nan
    early = max(r for epoch, r in ratios if epoch <= 20)
    late = [r for epoch, r in ratios if epoch > epochs - 20]
    return fall, early / (sum(late) / len(late))


def signal_to_noise(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean over layers of the ratio, over one epoch's batches in the order of the rows."""
    batches = zip(x[: words.TRAIN].split(words.BATCH), y[: words.TRAIN].split(words.BATCH), strict=True)
    found = gradient_snr(model, batches)
    return sum(found.values()) / len(found)
