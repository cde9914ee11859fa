"""014: the Cauchy-Schwarz bottleneck predicts as well as squared error and withstands attacks better.

Set beforehand: Friedman's function with 20 columns of noise, and diabetes; seeds 0-4; FGSM with eps 0.3 on
standardised inputs; all thresholds.
Left open, and chosen before the first run:
- 1000 rows of `friedman`. Hidden layers of 128, 128 and 32, whose last is the code t; the decoder is the
  linear head (the authors' has a hidden layer). 100 epochs of AdamW in batches of 128, cosine schedule.
- Both losses choose among three learning rates for every seed, by validation error. beta and sigma are the
  part's defaults.
- FGSM follows the gradient of the squared error for both, on test rows. Errors are in units of the targets'
  spread in training, which lets both data sets be averaged.
- Information is measured on test rows with median kernel widths and normalised, so that the codes' scale does
  not decide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.bottleneck import cs_qmi, median_sigma
from logitkit.claims.base import Check, Trial, claim, ratio
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.engine.inference import forward

SETS = ("friedman:nuisance=20", "diabetes")
RATES = (1e-3, 3e-3, 1e-2)
EPS = 0.3


@claim(
    "bottleneck",
    "cs_ib",
    statement="On Friedman's function and diabetes, the Cauchy-Schwarz bottleneck predicts as well as squared"
    " error, with less information about the input, and better under attack.",
    seeds=range(5),
    note="At the default beta = 0.01 the bottleneck barely acts: it takes 6 % of the information and 1.5 %"
    " of the error under attack, for no loss of accuracy. The kernels of width 1 see few neighbours"
    " among 600 rows of 25 standardised columns.",
)
def cs_ib(trial: Trial) -> list[Check]:
    found = {loss: [one(trial, seed, loss) for seed in trial.seeds] for loss in ("cs_ib", "mse")}

    def arms(i: int) -> dict[str, list[float]]:
        return {loss: [each[i] for each in runs] for loss, runs in found.items()}

    return [
        ratio("test error (RMSE, mean of both data sets): CS-IB over squared error", "<=", 1.03, **arms(0)),
        ratio("test error under FGSM: CS-IB over squared error", "<=", 0.9, **arms(1)),
        ratio("normalised information I(x, t) on test rows: CS-IB over squared error", "<", 1.0, **arms(2)),
    ]


def one(trial: Trial, seed: int, loss: str) -> tuple[float, float, float]:
    """Error, error under attack and information, averaged over the data sets."""
    results = []
    for spec in SETS:
        source = data.load(f"{spec}+seed={seed}" if ":" in spec else spec)
        prepared = Prepared.of(data.split(source, seed))
        common = {"model": "mlp(hidden=(128, 128, 32))", "epochs": 100, "batch_size": 128, "seed": seed}
        recipes = [Recipe.of(loss=loss, lr=rate, split_seed=seed, **common) for rate in RATES]
        results.append(judged(trial.tuned(prepared, recipes)))
    return tuple(sum(values) / len(SETS) for values in zip(*results, strict=True))


def judged(trainer: Trainer) -> tuple[float, float, float]:
    network, (x, y) = trainer.network, trainer.data.test
    attacked = fgsm(network, x, y)
    t = forward(network.embed, x)
    information = cs_qmi(x, t, (median_sigma(x), median_sigma(t)), normalized=True).item()
    return error(network, x, y), error(network, attacked, y), information


def error(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Root mean squared error, in units of the targets' spread in training."""
    return (forward(network, x)[:, 0] - y).square().mean().sqrt().item()


def fgsm(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((network(x)[:, 0] - y).square().sum(), x)
    return (x + EPS * slope.sign()).detach()
