"""The network of the information plane, 12-10-7-5-4-3-2, trained on all words of 12 bits.

x, y = draw(seed=0)
model = network(nn.Tanh, seed=0)
plane = InformationPlane(EBAB(), model, x, y, [LAST])
for epoch in training(x, y, model, epochs=100, seed=0):
    plane.record(epoch)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.data.base import seeded

__all__ = ["BATCH", "LAST", "TRAIN", "accuracy_on_train", "draw", "network", "training"]

WIDTHS = (12, 10, 7, 5, 4, 3, 2)
LAST = "9"  # the last hidden activation
TRAIN, BATCH = 3480, 256  # 85 % of the words, which lie in random order


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """All words and their labels, in random order: the first `TRAIN` are trained on."""
    words = data.load(f"words:bits=12+seed={seed}")
    assert isinstance(words.x, Tensor)
    return words.x, words.y


def network(activation: Callable[[], nn.Module], seed: int) -> nn.Sequential:
    """Weights drawn from a normal cut at two standard deviations, 1 / sqrt(fan-in); biases 0."""
    generator = seeded("words", seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(WIDTHS):
        linear = nn.Linear(a, b)
        nn.init.trunc_normal_(linear.weight, std=a**-0.5, a=-2 * a**-0.5, b=2 * a**-0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def training(
    x: Tensor, y: Tensor, model: nn.Sequential, epochs: int, seed: int, weight_decay: float = 0.0
) -> Iterator[int]:
    """Yields after every epoch, from 0 (untrained) to `epochs`: Adam, rate 2e-3, batches of 256."""
    x, y = x[:TRAIN], y[:TRAIN]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=weight_decay, fused=True)
    generator = seeded("order of words", seed)
    yield 0
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(TRAIN, generator=generator).split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield epoch


@torch.no_grad()
def accuracy_on_train(x: Tensor, y: Tensor, model: nn.Module) -> float:
    """The share of training words that the model has right."""
    return float((model(x[:TRAIN]).argmax(1) == y[:TRAIN]).double().mean())
