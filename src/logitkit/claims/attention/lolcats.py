"""085: a trained model made linear gets most of its loss back by transfer and low-rank changes.

Set beforehand: a small Llama-like model of 2 layers trained for 400 steps on bytes of Python source, context
128; windows of 8; low-rank changes of rank 8, alpha 16; seeds 0-2; thresholds.
Left open, and chosen before the first run:
- The model is `transformer` with rotary positions, width 64 and 4 heads, trained as `CODE_LM`.
- 150 steps of transfer at 0.01 and 150 of low-rank changes at 0.001, on batches of 16 training windows; the
  other arm has 300 low-rank steps, with features as they start.
- Losses are those of the test text. G is the loss right after the exchange minus the original one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.attention import attention_transfer, linearize, lora_finetune
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.claims.fixtures import CODE_LM, source, text_loss
from logitkit.engine import Prepared, Recipe

WINDOW, STAGE = 8, 150


@claim(
    "attention",
    "lolcats",
    statement="A language model whose softmax gives way to linear attention with a window wins 80 % of the"
    " lost ground back by transfer and low-rank changes, and less by low-rank changes alone.",
    seeds=range(3),
)
def lolcats(trial: Trial) -> list[Check]:
    both, alone, gap = [], [], []
    steps = trial.few(STAGE, 3)
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(source(trial, 128), seed))
        settings = CODE_LM | {"model": "transformer(depth=2,dim=64,heads=4,position=rope)", "steps": 400}
        model = trial.train(prepared, Recipe.of(**settings, seed=seed, split_seed=seed)).network
        g = torch.Generator().manual_seed(seed)
        x, y = prepared.train
        rows = [torch.randint(len(x), (16,), generator=g) for _ in range(2 * steps)]
        batches = [(x[r], y[r]) for r in rows]
        torch.manual_seed(seed)
        two, one = linearize(model, WINDOW), linearize(model, WINDOW)
        first, swapped = text_loss(model, prepared.test), text_loss(two, prepared.test)
        attention_transfer(two, [x for x, _ in batches[:steps]], steps)
        lora_finetune(two, batches[steps:], next_token, steps)
        lora_finetune(one, batches, next_token, 2 * steps)
        gap.append(swapped - first)
        both.append((swapped - text_loss(two, prepared.test)) / gap[-1])
        alone.append((swapped - text_loss(one, prepared.test)) / gap[-1])
    return [
        over_seeds("share of the lost ground won back by transfer and low-rank changes", both, ">=", 0.8,
                   {"share": both, "lost, nats": gap}),
        difference("share won back: transfer and low-rank changes minus low-rank changes alone", ">", 0,
                   both=both, alone=alone),
    ]  # fmt: skip


def next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y.flatten())
