"""225: kernels become orthogonal wherever they can, at every size of the image at once, and networks of them
keep their accuracy.

Set beforehand: Adam on the penalty alone from a Gaussian start, 40 configurations that are feasible, and
infeasible ones against their bounds; singular values at N = 64 and 16; a network on SHAPES whose layers have
Lipschitz constants near 1; all thresholds.
Left open, and chosen before the first run:
- Each seed (0-2) draws 40 feasible and 8 infeasible configurations of at most 8 channels, kernels of 1, 3 and
  5, strides of 1 to 3; entries start at N(0, 1 / (C k^2)). At most 2000 steps in float64 at a rate that falls
  from 0.05 to 1e-6 by a constant factor; done at 1e-9. The singular values are those of the feasible kernels,
  the largest distance from 1 among all of a seed's.
- The network: 3x3 orthogonal convolutions of stride 2 to 16, 32 and 64 channels, each with ReLU, and the mean
  over positions. Both arms start with the same orthogonal kernels; one adds the penalty to the loss. AdamW at
  3e-3, batches of 32, 15 epochs. Lipschitz constants are largest singular values on the maps of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds
from logitkit.data.base import seeded
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.engine.run import isolated
from logitkit.layers import (
    OrthogonalConv2d,
    isometry_report,
    orthogonal_conv_exists,
    orthogonal_conv_loss,
    orthogonality,
)

Configuration = tuple[int, int, int, int]  # channels out and in, size, stride


@claim(
    "layers",
    "orthogonal_conv",
    statement="The penalty goes to 0 wherever orthogonal kernels exist and stays above its bound elsewhere;"
    " what is left does not grow with the image; a network on shapes loses at most a point for"
    " Lipschitz constants within 5 % of 1.",
    seeds=range(3),
    note="2000 steps of Adam are too few: what misses 1e-8 is at 1e-4 and below and still falls. With 10,000"
    " steps 7 of the first 9 configurations of seed 0 get there, which were 3. The network with the penalty,"
    " whose layers can only turn, drop and rectify, has learnt 37 % after 15 epochs, the free one 67 %.",
)
def orthogonal_conv(trial: Trial) -> list[Check]:
    solved, margin, grows = [], [], []
    accuracies: dict[str, list[float]] = {"penalised": [], "free": []}
    lipschitz = []
    for seed in trial.seeds:
        with isolated(1):
            feasible, infeasible = draw(seed, trial.few(40, 4), trial.few(8, 2))
            ends = [minimized(each, seed, trial.few(2000, 60)) for each in feasible]
            solved.append(100 * sum(loss <= 1e-8 for _, loss in ends) / len(ends))
            margin.append(min(minimized(c, seed, trial.few(2000, 60))[1] - bound(c) for c in infeasible))
            reports = [isometry_report(k, c[3], (16, 64)) for (k, _), c in zip(ends, feasible, strict=True)]
            small, large = (max(report.error[i] for report in reports) for i in (0, 1))
            grows.append(large / small)
        shapes = data.load(f"shapes:n={trial.few(2500, 400)}+seed={seed}")
        prepared = Prepared.of(data.split(shapes, seed))
        for arm, algorithm in (("penalised", Penalised), ("free", Free)):
            recipe = Recipe.of(
                model=Orthogonal, algorithm=algorithm, epochs=15, batch_size=32, lr=3e-3, seed=seed,
                split_seed=seed,
            )  # fmt: skip
            network = trial.train(prepared, recipe).network
            accuracies[arm].append(accuracy(network, prepared.test))
            if arm == "penalised":
                lipschitz.append(constants(network))
    return [
        over_seeds("feasible configurations with a penalty of at most 1e-8, %", solved, ">=", 95,
                   {"feasible": solved}),
        over_seeds("least penalty above its bound over infeasible configurations", [min(margin)], ">=", -1e-9,
                   {"least": margin}),
        over_seeds("largest distance of a singular value from 1, N = 64 over N = 16", [max(grows)], "<=", 1.5,
                   {"ratio": grows}),
        difference("test accuracy, points: with the penalty minus without", ">=", -1, **accuracies),
        over_seeds("largest distance of a layer's Lipschitz constant from 1", [max(map(max, lipschitz))],
                   "<=", 0.05, {"layer by layer": [v for each in lipschitz for v in each]}),
    ]  # fmt: skip


def draw(seed: int, feasible: int, infeasible: int) -> tuple[list[Configuration], list[Configuration]]:
    g = seeded("orthogonal_conv", seed)
    found: tuple[list[Configuration], list[Configuration]] = [], []
    while len(found[0]) < feasible or len(found[1]) < infeasible:
        out, channels = torch.randint(1, 9, (2,), generator=g).tolist()
        size = 2 * int(torch.randint(3, (), generator=g)) + 1
        stride = int(torch.randint(1, 4, (), generator=g))
        found[0 if orthogonal_conv_exists(out, channels, size, stride) else 1].append(
            (out, channels, size, stride)
        )
    return found[0][:feasible], found[1][:infeasible]


def bound(configuration: Configuration) -> float:
    """The least penalty of a shape that cannot be orthogonal."""
    out, channels, size, stride = configuration
    if out <= channels * stride**2:
        return out - channels * size**2
    return channels * (stride**2 - size**2)


def minimized(configuration: Configuration, seed: int, steps: int) -> tuple[Tensor, float]:
    """The kernel that Adam finds, and its penalty."""
    out, channels, size, stride = configuration
    g = seeded("orthogonal_conv_start", seed, *configuration)
    kernel = torch.randn(out, channels, size, size, generator=g, dtype=torch.float64)
    kernel = (kernel / (channels * size**2) ** 0.5).requires_grad_()
    optimizer = torch.optim.Adam([kernel], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-6 / 0.05) ** (1 / steps))
    for _ in range(steps):
        loss = orthogonal_conv_loss(kernel, stride)
        if loss.item() <= 1e-9:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return kernel.detach(), orthogonal_conv_loss(kernel.detach(), stride).item()


class Orthogonal(nn.Module):
    """Three orthogonal convolutions with ReLU, and the mean over positions."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for out in (16, 32, 64):
            layers += [OrthogonalConv2d(channels, out, 3, 2), nn.ReLU()]
            channels = out
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Free:
    """The standard step."""

    weight = 0.0

    def step(self, trainer: Trainer, batch: Batch) -> Tensor:
        loss = trainer.objective(trainer.network, batch)
        trainer.optimizer.zero_grad()
        (loss + self.weight * orthogonality(trainer.network)).backward()
        trainer.optimizer.step()
        return loss.detach()


class Penalised(Free):
    weight = 1.0


def constants(network: nn.Module) -> list[float]:
    """Each layer's distance of its Lipschitz constant from 1; the maps have 16, 8 and 4 pixels a side."""
    layers = [layer for layer in network.modules() if isinstance(layer, OrthogonalConv2d)]
    reports = [isometry_report(layer.weight, 2, (n,)) for layer, n in zip(layers, (16, 8, 4), strict=True)]
    return [abs(report.largest[0] - 1) for report in reports]
