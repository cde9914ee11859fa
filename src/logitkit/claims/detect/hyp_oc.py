"""077: hyperbolic one-class training finds spoofs it has never seen, better than its Euclidean twin.

Set beforehand: live textures against four kinds of spoof that training does not see, a small network, seeds
0-4, both thresholds.
Left open, and chosen before the first run:
- Live images are `textures` of 32 pixels; 600 of 1000 train. Spoofs are re-renderings of the test images:
  moire (a grating of period 2.3 to 3 pixels over it), banding (six grey levels), print noise (dots on a
  grid of 3 pixels whose size follows the grey) and flat reflectance (a quarter of the contrast and a bright
  spot).
- As the paper starts from a network that knows faces, this one, `cnn(width=8)` with 6000 weights, first
  learns the six patterns of the live images (20 epochs, the recipe's defaults). Then its last convolution,
  at a hundredth of the rate, and the detector, at 1e-3, train on the one-class loss for 20 epochs in
  batches of 32 with Adam and gradient norms clipped at 3, from the same weights in both arms.
- The Euclidean twin is the part with c = 0: a linear head and Euclidean pairs. AUROC is averaged over the
  four kinds of spoof; that of the pretrained network's features with the detector fitted afterwards is
  reported.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.data.base import seeded
from logitkit.detect import HypOC
from logitkit.engine import Prepared, Recipe
from logitkit.engine.inference import forward
from logitkit.engine.metrics import auroc

RATE = 1e-3


@claim(
    "detect",
    "hyp_oc",
    statement="Trained on live textures alone, hyperbolic one-class classification detects four kinds of"
    " spoof, better than the Euclidean model.",
    seeds=range(5),
    note="Hyperbolic space is ahead by 0.5 points here and by 1.1 and 1.6 on other CPUs, whose rounding alone"
    " differs: five seeds show no difference. And 6000 weights trained to tell patterns apart see little of a"
    " spoof: fitted afterwards to the network's untouched features, the same detector reaches 72 %, so that"
    " training it jointly rather loses what they held.",
)
def hyp_oc(trial: Trial) -> list[Check]:
    found: dict[str, list[float]] = {"hyperbolic": [], "euclidean": [], "fitted_afterwards": []}
    for seed in trial.seeds:
        split = data.split(data.load(f"textures:n=1000+seed={seed}"), seed)
        prepared = Prepared.of(split)
        recipe = Recipe.of(model="cnn(width=8)", epochs=20, seed=seed, split_seed=seed)
        backbone = trial.train(prepared, recipe).network.backbone
        assert isinstance(split.test.x, Tensor)
        live = prepared.test[0]
        fakes = [prepared.preprocessor.transform(x) for x in spoofs(split.test.x, seed)]

        for name, c in (("hyperbolic", 0.1), ("euclidean", 0.0)):
            network = deepcopy(backbone)
            detector = one_class(trial, seed, network, prepared.train[0], c)
            found[name].append(mean_auroc(network, detector, live, fakes))
        detector = HypOC().fit(forward(backbone, prepared.train[0]))
        found["fitted_afterwards"].append(mean_auroc(backbone, detector, live, fakes))
    return [
        over_seeds("AUROC, percent, mean of four kinds of spoof", found["hyperbolic"], ">=", 90, found),
        difference("AUROC, points: hyperbolic minus Euclidean", ">=", 1.0, **found),
    ]


def mean_auroc(network: nn.Module, detector: HypOC, live: Tensor, fakes: list[Tensor]) -> float:
    """In percent, over the kinds of spoof."""
    inside = detector.score(forward(network, live))
    scores = [auroc(inside, detector.score(forward(network, fake))) for fake in fakes]
    return 100 * sum(scores) / len(scores)


def one_class(trial: Trial, seed: int, network: nn.Module, x: Tensor, c: float) -> HypOC:
    """Train the network's last convolution and a detector on live images; returns the detector."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = HypOC(in_features=int(network.out_features), c=c)  # type: ignore[arg-type]
        groups = [
            {"params": list(detector.parameters()), "lr": RATE},
            {"params": list(last.parameters()), "lr": RATE / 100},
        ]
        optimizer = torch.optim.Adam(groups, weight_decay=1e-6, fused=True)
        for _ in range(trial.few(20, 1)):
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                detector.loss(network(x[rows])).backward()
                nn.utils.clip_grad_norm_(detector.parameters(), 3.0)
                optimizer.step()
    return detector.eval()


def spoofs(x: Tensor, seed: int) -> list[Tensor]:
    """The live images (n, 1, size, size) re-rendered in four ways."""
    g = seeded("spoofs", seed)
    n, _, size, _ = x.shape
    grid = torch.arange(size) + 0.5
    row, column = torch.meshgrid(grid, grid, indexing="ij")

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, generator=g)).view(n, 1, 1, 1)

    angle = uniform(0, math.pi)
    along = angle.cos() * column + angle.sin() * row
    moire = x + 0.1 * (2 * math.pi * along / uniform(2.3, 3.0)).cos()
    banding = (5 * x).round() / 5
    away = ((row % 3 - 1.5).square() + (column % 3 - 1.5).square()).sqrt()
    printed = torch.where(away < 2.2 * (1 - x), 0.25, 0.75) + 0.05 * torch.randn(x.shape, generator=g)
    spot = (row - size * uniform(0.2, 0.8)).square() + (column - size * uniform(0.2, 0.8)).square()
    mean = x.mean(dim=(2, 3), keepdim=True)
    flat = mean + 0.25 * (x - mean) + 0.4 * (-spot / (2 * (size / 6) ** 2)).exp()
    return [image.clamp(0, 1) for image in (moire, banding, printed, flat)]
