"""025: distance to the class means finds inputs that the softmax is sure about, and adversarial ones.

Set beforehand: a CNN on digits 0-5, seeds 0-4; far inputs are uniform noise, textures and inverted digits;
FGSM with eps 0.1 (of the pixel range) is detected by layer weights fitted on another attack; all thresholds.
Left open, and chosen before the first run:
- The recipe's defaults: `cnn`, 30 epochs of AdamW at 1e-3. Both detectors read the same trained network.
- Far inputs are judged by the part as the engine fits it, on the last features; its score on digits 6-9 is
  reported beside. As many of each kind as test rows; textures are 8x8 as the digits are.
- FGSM is judged by `MahalanobisEnsemble` on the network's three ReLU outputs. As in the authors' code, only
  rows count that are classified rightly and then wrongly under attack, and the size of the input nudge is
  chosen from a grid (in pixels) by AUROC on rows of the validation attack that did not fit the
  layer weights: even rows fit, odd rows choose. That attack is PGD with 7 steps and the same eps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, keep_classes, over_seeds, pixel_limits
from logitkit.detect import MSP, MahalanobisEnsemble
from logitkit.engine import Prepared, Recipe
from logitkit.engine.metrics import auroc
from logitkit.engine.network import Network
from logitkit.robust import FGSM, PGD

NUDGES = (0.0, 5e-4, 1e-3, 1.4e-3, 2e-3, 5e-3, 1e-2)


@claim(
    "detect",
    "mahalanobis",
    statement="For a CNN on digits 0-5, Mahalanobis distance detects noise, textures, inverted digits and"
    " FGSM better than the maximum softmax probability.",
    seeds=range(5),
    note="This network is unsure of such inputs to begin with: the maximum softmax reaches 0.987 against far"
    " inputs, which leaves less than the 0.03 asked for, and the few dozen test rows that FGSM fools are"
    " classified with a mean confidence of only about two thirds.",
)
def mahalanobis(trial: Trial) -> list[Check]:
    found = [one_seed(trial, seed) for seed in trial.seeds]
    arms = {name: [each[name] for each in found] for name in found[0]}
    far = {name: arms[name] for name in ("mahalanobis", "softmax", "near_mahalanobis", "near_softmax")}
    return [
        over_seeds(
            "AUROC against far inputs, mean over noise, textures and inverted digits (near: digits 6-9)",
            far["mahalanobis"], ">=", 0.95, far,
        ),
        difference("AUROC against far inputs: Mahalanobis minus maximum softmax", ">=", 0.03, **far),
        difference(
            "AUROC against FGSM with eps 0.1 of the pixel range: Mahalanobis ensemble minus maximum softmax",
            ">=", 0.05, mahalanobis=arms["fgsm_mahalanobis"], softmax=arms["fgsm_softmax"],
        ),
    ]  # fmt: skip


def one_seed(trial: Trial, seed: int) -> dict[str, float]:
    """The AUROC of both detectors against every kind of input."""
    digits = data.load("digits")
    parts = data.split(keep_classes(digits, range(6)), seed)
    prepared = Prepared.of(parts)
    recipe = Recipe.of(model="cnn", detect="mahalanobis", seed=seed, split_seed=seed)
    predictor = trial.run_on(prepared, recipe).predictor
    assert predictor is not None
    softmax = MSP()
    inside = prepared.test[0]

    def aurocs(images: data.Dataset | Tensor) -> tuple[float, float]:
        x = prepared.preprocessor.transform(images)
        by_softmax = (softmax.score(predictor.scores(each)) for each in (inside, x))
        return auroc(predictor.abnormality(inside), predictor.abnormality(x)), auroc(*by_softmax)

    pixels = parts.test.x
    assert isinstance(pixels, Tensor)
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed))
    textures = data.load(f"textures:n={len(inside)},size=8+seed={seed}")
    far = [aurocs(images) for images in (noise, textures, 1 - pixels)]
    near = aurocs(keep_classes(digits, range(6, 10)))
    attacked = adversarial(predictor.network, prepared, seed, NUDGES[: trial.few(len(NUDGES), 1)])
    return {
        "mahalanobis": sum(a for a, _ in far) / len(far),
        "softmax": sum(b for _, b in far) / len(far),
        "near_mahalanobis": near[0],
        "near_softmax": near[1],
        "fgsm_mahalanobis": attacked[0],
        "fgsm_softmax": attacked[1],
    }


def adversarial(
    network: Network, prepared: Prepared, seed: int, nudges: Sequence[float]
) -> tuple[float, float]:
    """AUROC of the ensemble and of the maximum softmax against FGSM."""
    black, white = pixel_limits(prepared)
    eps, clamp = 0.1 * (white - black), (black, white)
    other = PGD(eps, steps=7, clamp=clamp, generator=torch.Generator().manual_seed(seed))
    clean, fooled = successes(network, other, *prepared.val)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU)]
    candidates = []
    for nudge in nudges:
        ensemble = MahalanobisEnsemble(network, layers, eps=nudge * (white - black)).fit(*prepared.train)
        ensemble.fit_ensemble(clean[::2], fooled[::2])
        candidates.append((auroc(ensemble.score(clean[1::2]), ensemble.score(fooled[1::2])), ensemble))
    best = max(candidates, key=lambda each: each[0])[1]
    clean, fooled = successes(network, FGSM(eps, clamp=clamp), *prepared.test)
    with torch.no_grad():
        by_softmax = [MSP().score(network(x)) for x in (clean, fooled)]
    return auroc(best.score(clean), best.score(fooled)), auroc(*by_softmax)


@torch.no_grad()
def successes(network: Network, attack: PGD, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that are classified rightly and, under the attack, wrongly: clean and attacked."""
    attacked = attack(network, x, y)
    chosen = (network(x).argmax(1) == y) & (network(attacked).argmax(1) != y)
    return x[chosen], attacked[chosen]
