"""031: sigmoid attention with bias -log n is as good as softmax; without the bias its outputs start large.

Set beforehand: 256 keys at zero scores; the language model on bytes of Python source (`CODE_LM`), 300 steps
for every arm; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- n_ref is the context, 64, in a model whose rows see 1 to 64 tokens.
- The norm at the first step is that of what the heads mix, before the output projection: the mean over
  tokens, layers and the first test windows, in the initialised model.
- "Not better at the end": the test loss with bias 0 is at least that with bias -log n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from logitkit import data
from logitkit.attention import MultiheadAttention, sigmoid_attention
from logitkit.claims.base import Check, Trial, claim, over_seeds, ratio
from logitkit.claims.fixtures import CODE_LM, code, nats
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.engine.run import isolated

KEYS = 256


@claim(
    "attention",
    "sigmoid",
    statement="A byte language model with sigmoid attention, bias -log n, is as good as with softmax; with"
    " bias 0 the attention outputs start at least 8 times as large, and the model ends no better.",
    seeds=range(3),
)
def sigmoid(trial: Trial) -> list[Check]:
    arms = {"sigmoid": "sigmoid", "softmax": "softmax", "bias 0": "sigmoid(score_bias=0.0)"}
    loss: dict[str, list[float]] = {arm: [] for arm in arms}
    norm: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(code(), seed))
        for arm, attention in arms.items():
            recipe = Recipe.of(**CODE_LM, attention=attention, seed=seed, split_seed=seed)
            norm[arm].append(first_norm(recipe, prepared))
            loss[arm].append(nats(trial.run_on(prepared, recipe)))
    growth = [output_growth(seed) for seed in trial.seeds]
    return [
        over_seeds("norm at zero scores, bias 0 over bias -log n: ratio to (n + 1) / 2", growth, ">=",
                   0.98, {"ratio": growth}),
        over_seeds("norm at zero scores, bias 0 over bias -log n: ratio to (n + 1) / 2", growth, "<=",
                   1.02, {"ratio": growth}),
        ratio("test loss: sigmoid over softmax", "<=", 1.03,
              sigmoid=loss["sigmoid"], softmax=loss["softmax"]),
        ratio("norm of attention outputs before training: bias 0 over softmax", ">=", 8,
              **{"bias 0": norm["bias 0"], "softmax": norm["softmax"], "sigmoid": norm["sigmoid"]}),
        ratio("test loss: bias 0 over bias -log n", ">=", 1,
              **{"bias 0": loss["bias 0"], "sigmoid": loss["sigmoid"]}),
    ]  # fmt: skip


def output_growth(seed: int) -> float:
    """How many times larger the output is without the bias, over (n + 1) / 2."""
    g = torch.Generator().manual_seed(seed)
    query = torch.zeros(1, 1, 1, 16)
    key, value = (torch.randn(1, 1, KEYS, 16, generator=g) for _ in range(2))
    large, small = (sigmoid_attention(query, key, value, bias=b).norm() for b in (0.0, -math.log(KEYS)))
    return (large / small).item() / ((KEYS + 1) / 2)


@torch.no_grad()
def first_norm(recipe: Recipe, prepared: Prepared) -> float:
    """Mean norm over tokens of what all heads of a layer mix, in the network as initialised."""
    with isolated(recipe.threads):
        trainer = Trainer(recipe, prepared)
    found: list[Tensor] = []
    for module in trainer.network.modules():
        if isinstance(module, MultiheadAttention):
            module.out_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    trainer.network(prepared.test[0][:64])
    return torch.cat(found).norm(dim=-1).mean().item()
