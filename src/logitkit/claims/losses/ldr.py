"""005: under heavy label noise the adaptive LDR loss keeps what cross-entropy loses, and its temperatures
tell which labels are wrong.

Left open by the statement, settled before running:
both networks named, a linear model and an MLP, must pass each check. Training is the authors' script: SGD
with momentum 0.9, weight decay 5e-3, batches of 64, 100 epochs; the rate falls as a cosine, not in two steps.
Both losses choose their rate from {0.001, 0.01, 0.1}, which spans what the authors' script and README use, by
accuracy on the noisy validation rows; ALDR-KL is otherwise at its defaults.
A first run gave ALDR-KL three values of lam0 at the one rate 0.01 in place of the rates that cross-entropy
had: 3.6 points (linear) and 14.9 points (MLP) worse than cross-entropy. The same grid of rates in both arms
is what all claims here are held to, so the experiment was corrected to it; thresholds and seeds stayed.
"""

from __future__ import annotations

from functools import partial

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.engine.metrics import auroc
from logitkit.losses.aldr import ALDRKL

NETWORKS = {"linear": "linear", "MLP": "mlp(hidden=(128,))"}
TRAINING = {"optimizer": "sgd(momentum=0.9)", "weight_decay": 5e-3, "batch_size": 64, "epochs": 100}


@claim(
    "losses",
    "ldr",
    statement="On digits with 60 % wrong labels ALDR-KL beats cross-entropy on clean test rows, costs nothing"
    " without noise, and gives the mislabelled training rows the higher temperatures.",
    seeds=range(5),
    note="In the MLP ALDR-KL wins 3.8 points under noise, short of 5, and its temperatures do find the wrong"
    " labels; a linear model can learn few wrong labels by heart, so there is little to win, and on"
    " normalised scores at lam0 = 10 it probably needs more than 100 epochs without noise."
    " A first run tuned lam0 at one rate in place of the rate, and was 3.6 and 14.9 points behind.",
)
def ldr(trial: Trial) -> list[Check]:
    checks = []
    for name, model in NETWORKS.items():
        noisy = [trained(trial, seed, model, 0.6) for seed in trial.seeds]
        clean = [trained(trial, seed, model, 0.0) for seed in trial.seeds]
        lam = [temperatures(aldr) for aldr, _ in noisy]
        checks += [
            difference(
                f"{name}, clean-test accuracy at 60 % label noise, points: ALDR-KL minus cross-entropy",
                ">=", 5.0,
                aldr=[tested(aldr) for aldr, _ in noisy], ce=[tested(ce) for _, ce in noisy],
            ),
            difference(
                f"{name}, accuracy without noise, points: cross-entropy minus ALDR-KL", "<=", 1.5,
                ce=[tested(ce) for _, ce in clean], aldr=[tested(aldr) for aldr, _ in clean],
            ),
            difference(
                f"{name}, mean lam_i / lam0 at 60 % label noise: mislabelled minus correct training rows",
                ">", 0.0,
                mislabelled=[wrong for wrong, _, _ in lam], correct=[right for _, right, _ in lam],
            ),
            over_seeds(
                f"{name}, AUROC of lam_i for telling mislabelled from correct training rows",
                [area for _, _, area in lam], ">=", 0.75, {"aldr": [area for _, _, area in lam]},
            ),
        ]  # fmt: skip
    return checks


def trained(trial: Trial, seed: int, model: str, noise: float) -> tuple[Trainer, Trainer]:
    """ALDR-KL and cross-entropy, each at the best of three rates on the noisy validation rows."""
    prepared = Prepared.of(data.split(data.load(f"digits+noise={noise}"), seed))
    recipe = partial(Recipe.of, model=model, seed=seed, split_seed=seed, **TRAINING)
    rates = (0.001, 0.01, 0.1)
    aldr, ce = (
        trial.tuned(prepared, [recipe(loss=loss, lr=lr) for lr in rates])
        for loss in ("aldr", "cross_entropy")
    )
    return aldr, ce


def tested(trainer: Trainer) -> float:
    return accuracy(trainer.network, trainer.data.test)


def temperatures(trainer: Trainer) -> tuple[float, float, float]:
    """Mean lam_i / lam0 of mislabelled and of correct training rows, and the AUROC between them."""
    loss = trainer.objective.losses[0]
    assert isinstance(loss, ALDRKL)
    lam, wrong = loss.lam / loss.lam0, trainer.data.train_set.extras["noisy"]
    return lam[wrong].mean().item(), lam[~wrong].mean().item(), auroc(lam[~wrong], lam[wrong])
