"""051: of functions of a set, one random-feature attention layer learns more than random features of
everything; its biased form learns more of correlations with the query.

Set beforehand: dim 8, 8 keys, 512 training and 1,000 test rows on the sphere; the targets mean_i <b, x_i>^3
and mean_i <x_0, x_i>^3 <b, x_i>; equal numbers of trained coefficients; the penalty chosen per arm on a
held-out split; seeds 0-4; both thresholds.
Left open, and chosen before the first run:
- 2,048 coefficients: 256 matrices for attention, 2,048 features for the MLP. The bias is 2.
- Errors are relative to the variance of the test targets. The penalty is the best of 1e-8, 1e-6, ..., 1 on
  128 of the training rows, and the fit is then made on all 512.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from logitkit.claims.base import Check, Trial, claim, ratio
from logitkit.data.base import seeded
from logitkit.theory import RandomFeatureAttention, RandomFeatureMLP
from logitkit.theory.random_feature_attention import RandomFeatureRegression

DIM, KEYS, TRAIN, TEST, HELD_OUT = 8, 8, 512, 1000, 128
PENALTIES = tuple(10.0**-k for k in range(8, -1, -2))
Make = Callable[[float, int], RandomFeatureRegression]


@claim(
    "theory",
    "random_feature_attention",
    statement="Of a cubic function of a set of keys, random-feature attention leaves at most 0.3 of the error"
    " of a random-feature MLP with as many coefficients; of keys weighted by their likeness to the query, the"
    " biased form leaves at most 0.7 of that of the unbiased.",
    seeds=range(5),
    note="Attention leaves 0.33 of the variance of the set function and the MLP 0.46. More features do not"
    " help: regression with the kernel of infinitely many leaves 0.31, so that 512 rows are what limits it."
    " The bias costs more than it helps here, also at penalties up to 100 (on another seed 0.44 against"
    " 0.37).",
)
def random_feature_attention(trial: Trial) -> list[Check]:
    count = trial.few(256, 16)
    arms: dict[str, Make] = {
        "attention": lambda l2, seed: RandomFeatureAttention(count, 0.0, l2, seed),
        "biased": lambda l2, seed: RandomFeatureAttention(count, 2.0, l2, seed),
        "MLP": lambda l2, seed: RandomFeatureMLP(DIM * count, l2, seed),
    }
    errors: dict[tuple[str, str], list[float]] = {}
    for seed in trial.seeds:
        g = seeded("random_feature_attention", seed)
        x = torch.randn(TRAIN + TEST, 1 + KEYS, DIM, generator=g)
        x = x / x.norm(dim=-1, keepdim=True)
        b = torch.randn(DIM, generator=g)
        linear = x[:, 1:] @ (b / b.norm())
        like = (x[:, 1:] @ x[:, 0, :, None])[..., 0]
        targets = {"set": linear.pow(3).mean(1), "likeness": (like.pow(3) * linear).mean(1)}
        for kind, y in targets.items():
            for arm, make in arms.items():
                errors.setdefault((kind, arm), []).append(error(make, x, y, seed))
    return [
        ratio("test error on mean <b, x_i>^3: attention over MLP", "<=", 0.3,
              **{arm: errors["set", arm] for arm in ("attention", "MLP", "biased")}),
        ratio("test error on mean <x_0, x_i>^3 <b, x_i>: biased over unbiased attention", "<=", 0.7,
              **{arm: errors["likeness", arm] for arm in ("biased", "attention", "MLP")}),
    ]  # fmt: skip


def error(make: Make, x: Tensor, y: Tensor, seed: int) -> float:
    """Mean squared test error over the variance of the test targets, at the penalty that is best on held-out
    training rows."""

    def mse(l2: float, fit: slice, judge: slice) -> float:
        return (make(l2, seed).fit(x[fit], y[fit]).predict(x[judge]) - y[judge]).square().mean().item()

    cut = TRAIN - HELD_OUT
    best = min(PENALTIES, key=lambda l2: mse(l2, slice(cut), slice(cut, TRAIN)))
    return mse(best, slice(TRAIN), slice(TRAIN, None)) / y[TRAIN:].var().item()
