"""214: training on random quarters of the keys generalises as well, and the model is an ensemble of itself.

Set beforehand: the language model on bytes of Python source (`CODE_LM`), 200,000 of them and 900 steps, so
that dense training overfits; 4 windows, the last 10 % of the steps dense; ensembles of 1 to 16; seeds 0-2;
all thresholds.
Left open, and chosen before the first run:
- Windows are local, as text is, with jitter of a window's size.
- The loss is that on the test text, per byte. Ensembles are of the weights just before the dense steps; the
  single pass is the mean of the 16. "Decreasing" is the largest change of the loss from S to 2 S.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.attention import set_dense
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.claims.fixtures import CODE_LM, code, text_loss
from logitkit.engine import Batch, Prepared, Recipe, Trainer

STEPS, SAMPLES = 900, 16


@claim(
    "attention",
    "subsampled",
    statement="Trained on random quarters of the keys, and on all for the last tenth of its steps, a byte"
    " language model is as good as with dense training; before that, averaging passes lowers its loss.",
    seeds=range(3),
    note="At 0.17 nats the regulariser costs more than it gives: two layers of width 64 that read the text"
    " 4.6 times have little to overfit, and 90 dense steps do not make up for what they miss before. The"
    " ensemble behaves as claimed.",
)
def subsampled(trial: Trial) -> list[Check]:
    loss: dict[str, list[float]] = {"subsampled": [], "dense": []}
    single, ensemble, rises = [], [], []
    text = code(train=trial.few(200_000, 40_000), held_out=trial.few(100_000, 4_096))
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(text, seed))
        settings = CODE_LM | {"steps": STEPS, "seed": seed, "split_seed": seed}
        dense = trial.train(prepared, Recipe.of(**settings))
        loss["dense"].append(text_loss(dense.network, prepared.test))
        thinned = trial.train(
            prepared,
            Recipe.of(**settings, attention="subsampled(windows=4, mode=local)", algorithm=DenseFinish),
        )
        loss["subsampled"].append(text_loss(thinned.network, prepared.test))
        assert isinstance(thinned.algorithm, DenseFinish)
        before = thinned.network
        before.load_state_dict(thinned.algorithm.before)
        passes, means = ensembles(before, prepared.test, seed)
        single.append(passes)
        ensemble.append(means[-1])
        rises.append(max(b - a for a, b in itertools.pairwise(means)))
    return [
        difference("test loss, nats: subsampled with a dense finish minus dense", "<=", 0.01, **loss),
        difference("test loss before the dense steps, nats: mean single pass minus ensemble of 16", ">=",
                   0.02, single=single, ensemble=ensemble),
        over_seeds("largest change of the ensemble's loss from S to 2 S, nats", rises, "<", 0,
                   {"change": rises}),
    ]  # fmt: skip


class DenseFinish:
    """Ordinary steps, the last tenth of them dense; `before` are the weights that those start from."""

    before: dict[str, Tensor]

    def step(self, trainer: Trainer, batch: Batch) -> Tensor:
        steps = trainer.recipe.steps
        assert steps is not None
        if trainer.progress.step == steps - steps // 10:
            self.before = copy.deepcopy(trainer.network.state_dict())
            set_dense(trainer.network, True)
        return trainer.standard_step(batch)


@torch.no_grad()
def ensembles(network: nn.Module, rows: tuple[Tensor, Tensor], seed: int) -> tuple[float, list[float]]:
    """Mean loss of a single subsampled pass, and that of ensembles of the first 1, 2, 4, ... passes."""
    torch.manual_seed(seed)
    set_dense(network, False)
    sizes = [2**k for k in range(int(math.log2(SAMPLES)) + 1)]
    single, of_size, tokens = 0.0, dict.fromkeys(sizes, 0.0), rows[1].numel()
    for x, y in zip(rows[0].split(64), rows[1].split(64), strict=True):
        target = y.flatten()
        total: Tensor | None = None
        for k in range(1, SAMPLES + 1):
            log_p = network(x).log_softmax(-1)
            single += F.nll_loss(log_p, target, reduction="sum").item() / SAMPLES
            total = log_p if total is None else torch.logaddexp(total, log_p)
            if k in of_size:
                of_size[k] += F.nll_loss(total - math.log(k), target, reduction="sum").item()
    set_dense(network, None)
    return single / tokens, [of_size[k] / tokens for k in sizes]
