"""A training step of one layer of each causal attention, by length; 64 features, 4 heads."""

from __future__ import annotations

from functools import partial

import torch

from logitkit import catalog
from logitkit.attention import MultiheadAttention
from logitkit.bench.base import Arm, Arms, Case

PEERS = ()
NOTE = """\
Forward and backward of the whole module, projections included, batch 1, float32, as a language model trains
it; from which length on a replacement pays in time or memory. What it costs in quality is in the comparisons.
Extra memory is beyond weights and their gradients."""

ARMS = {
    "softmax": {}, "sigmoid": {}, "softplus": {}, "power": {}, "selective": {}, "entropy_guided": {},
    "hopfield": {}, "subsampled": {"windows": 8}, "linear": {}, "dsf": {}, "qlstm": {}, "cosformer": {},
    "lolcats": {"window": 64},
}  # fmt: skip
LENGTHS = (128, 512, 2048, 8192)


def _arms(n: int, small: bool) -> Arms:
    n = 272 if small else n
    g = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(1, n, 64, generator=g) for _ in range(2))
    parts: dict[str, MultiheadAttention] = {}
    for name, settings in ARMS.items():
        torch.manual_seed(0)
        place = {"embed_dim": 64, "num_heads": 4, "max_len": n, "n_ref": n}
        parts[name] = catalog.create("attention", name, **place, **settings)

    def arm(part: MultiheadAttention) -> Arm:
        def step() -> None:
            part.zero_grad()
            part(x, is_causal=True)[0].backward(cotangent)

        return step

    leaves = [p for part in parts.values() for p in part.parameters()]
    return Arms({name: arm(part) for name, part in parts.items()}, leaves=leaves)


def cases() -> list[Case]:
    return [Case(f"n={n:,}", partial(_arms, n), memory=tuple(ARMS)) for n in LENGTHS]
