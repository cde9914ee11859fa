"""147: a causal vision transformer needs its class token last, and then is as good as one that sees all.

Set beforehand: digits at the size of `TINY_VIT`; a first class token under causal attention against chance, a
last one with a softened mask against `vit` and against the hard mask; rank of attention maps as singular
values above 1e-3 of the largest; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- Trained as `TINY_VIT`, but on batches of 16; the mask softens over the first 5 of 15 epochs.
- The first class token is under a softmax over what it sees (mask_mode="logit"). The authors' mask after the
  softmax would let the sums of weights tell of the other pixels. The other arms have the authors' mask.
- Ranks are those of the weights of 64 test images, in the mean over images, heads and layers, of the softened
  mask and of `vit`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.attention import MultiheadAttention
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds
from logitkit.claims.fixtures import TINY_VIT
from logitkit.engine import Prepared, Recipe

BATCH, SOFT_EPOCHS = 16, 5
SIZE = "patch=1,dim=32,depth=2,heads=4"


@claim(
    "models",
    "illama",
    statement="On digits, causal attention with the class token first is at chance; with the token last and"
    " a softened mask it is within 2 points of a vision transformer, no worse than with a hard mask, and its"
    " attention maps have a higher rank.",
    seeds=range(3),
)
def illama(trial: Trial) -> list[Check]:
    soft = SOFT_EPOCHS * -(-1078 // BATCH)
    arms = {
        "first": f"illama({SIZE},soft_steps=0,cls=first,mask_mode=logit)",
        "soft": f"illama({SIZE},soft_steps={soft})",
        "hard": f"illama({SIZE},soft_steps=0)",
        "vit": f"vit({SIZE})",
    }
    right: dict[str, list[float]] = {arm: [] for arm in arms}
    rank: dict[str, list[float]] = {"soft": [], "vit": []}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(data.load("digits"), seed))
        for arm, model in arms.items():
            settings = {**TINY_VIT, "model": model, "batch_size": trial.few(BATCH, 256)}
            recipe = Recipe.of(**settings, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network.eval()
            right[arm].append(accuracy(network, prepared.test))
            if arm in rank:
                rank[arm].append(map_rank(network, prepared.test[0][:64]))
    return [
        over_seeds("test accuracy, percent: class token first, causal", right["first"], "<=", 15,
                   {"first": right["first"]}),
        difference("test accuracy, points: softened mask minus vision transformer", ">=", -2,
                   soft=right["soft"], vit=right["vit"]),
        difference("test accuracy, points: softened mask minus hard mask", ">=", -0.3,
                   soft=right["soft"], hard=right["hard"]),
        difference("rank of attention maps: causal minus vision transformer", ">", 0, **rank),
    ]  # fmt: skip


@torch.no_grad()
def map_rank(network: nn.Module, x: Tensor) -> float:
    """Singular values of a head's weights that are above 1e-3 of the largest, in the mean."""
    ranks: list[float] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], asked: dict[str, object]) -> None:
        handle.remove()
        wanted = {**asked, "need_weights": True, "average_attn_weights": False}
        values = torch.linalg.svdvals(layer(*inputs, **wanted)[1])
        ranks.append((values > 1e-3 * values[..., :1]).sum(-1).double().mean().item())

    for layer in [m for m in network.modules() if isinstance(m, MultiheadAttention)]:
        handle = layer.register_forward_pre_hook(look, with_kwargs=True)
        network(x)
    return sum(ranks) / len(ranks)
