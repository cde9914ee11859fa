"""042: what two images share is found after compression, and not by neighbours among pixels.

Set beforehand: images of 32x32 of Gaussian blobs and of rectangles, whose 2 and 4 parameters are coupled so
that 0, 1, 2, 3 or 4 nats are shared; 4,000 pairs, 3 seeds; a mean absolute error of 0.35 nat, a third of that
of nearest neighbours among raw pixels; and a convolutional network with noise on grey shapes, of which
I(T; Y) rises to 90 % of H(Y).
Left open, and chosen before the first run:
- Parameters are normal, each of a pair correlated alike, then uniform by their distribution function. A blob
  has a standard deviation of 3 pixels and its centre anywhere; a rectangle has two sorted uniform numbers for
  each side, a pixel as bright as the share of it that is covered.
- Autoencoders on both sides, of as many numbers as there are parameters, 100 epochs on 4,000 other pairs.
- Raw pixels: `ops.mutual_information` with the same 5 neighbours.
- The network: three convolutions of stride 2 with 16, 32, 32 channels and a layer of 16 tanh units with noise
  of 0.1, Adam at 1e-3, 40 epochs of 4,000 shapes; PCA to 5 numbers; the plane is that of 2,000 others, every
  4 epochs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, over_seeds, ratio
from logitkit.data.base import seeded
from logitkit.engine.run import isolated
from logitkit.ops import mutual_information
from logitkit.probe import InformationPlane, LossyMI, noisy_activations

SIDE, PAIRS, SHARED = 32, 4000, (0, 1, 2, 3, 4)
KINDS = {"blobs": 2, "rectangles": 4}


@claim(
    "probe",
    "lossy_mi",
    statement="Between images, the information after compression is within 0.35 nat of the truth, a third of"
    " the error that raw pixels leave; I(T; Y) of a noisy network rises to 90 % of H(Y).",
    seeds=range(3),
    note="After compression 0.41 nat are missed on average where 0.35 were asked for, among raw pixels 2.7."
    " The network is right on 79 % of the 2,000 shapes that it was not trained on (seed 0), which is too few"
    " for 90 % of H(Y); on rows that it was trained on I(T; Y) comes to 0.90 of it.",
)
def lossy_mi(trial: Trial) -> list[Check]:
    pairs, epochs = trial.few(PAIRS, 300), trial.few(100, 2)
    with isolated(1):
        errors = [
            [error for kind in KINDS for error in errors_of(kind, seed, pairs, epochs)]
            for seed in trial.seeds
        ]
        share = [label_share(seed, trial.few(40, 4)) for seed in trial.seeds]
    ours, raw = ([sum(both[k] for both in several) / len(several) for several in errors] for k in (0, 1))
    return [
        over_seeds("mean absolute error, nats", ours, "<=", 0.35, {"compressed": ours, "raw": raw}),
        ratio("mean absolute error: compressed over raw pixels", "<=", 1 / 3, compressed=ours, raw=raw),
        over_seeds("highest I(T; Y) of a noisy network, share of H(Y)", share, ">=", 0.9, {"share": share}),
    ]  # fmt: skip


def errors_of(kind: str, seed: int, pairs: int, epochs: int) -> list[tuple[float, float]]:
    """Absolute errors in nats after compression and among raw pixels, for each amount that is shared."""
    mi = LossyMI("ae", "ae", dim=KINDS[kind], epochs=epochs, seed=seed)
    mi.fit(*images(kind, 0, seed, pairs, "fit"))
    found = []
    for shared in SHARED:
        x, t = images(kind, shared, seed, pairs, "estimate")
        found.append((abs(mi.estimate(x, t).value - shared), abs(mutual_information(x, t, k=mi.k) - shared)))
    return found


def images(kind: str, shared: int, seed: int, pairs: int, use: str) -> tuple[Tensor, Tensor]:
    """Pairs of images, flat, with that many nats in common."""
    parameters = KINDS[kind]
    rho = math.sqrt(1 - math.exp(-2 * shared / parameters))
    g = seeded("lossy_mi", kind, shared, seed, use)
    a, e = (torch.randn(pairs, parameters, generator=g, dtype=torch.float64) for _ in range(2))
    b = rho * a + math.sqrt(1 - rho * rho) * e
    draw = blobs if kind == "blobs" else rectangles
    return draw(torch.special.ndtr(a)), draw(torch.special.ndtr(b))


def blobs(u: Tensor) -> Tensor:
    """exp(-|pixel - centre|^2 / 18), the centre anywhere in the image."""
    pixel = torch.arange(SIDE) + 0.5
    row, column = (torch.exp(-(pixel - SIDE * u[:, k : k + 1]).square() / 18) for k in (0, 1))
    return (row[:, :, None] * column[:, None, :]).flatten(1).float()


def rectangles(u: Tensor) -> Tensor:
    """The share of each pixel that is covered; the ends of a side are two sorted uniform numbers."""
    row, column = (_covered(u[:, k], u[:, k + 1]) for k in (0, 2))
    return (row[:, :, None] * column[:, None, :]).flatten(1).float()


def _covered(first: Tensor, second: Tensor) -> Tensor:
    low = 1 - (1 - first).sqrt()  # the smaller of two uniform numbers, and the larger given the smaller
    high = low + second * (1 - low)
    pixel = torch.arange(SIDE)
    inside = torch.minimum(SIDE * high[:, None], pixel + 1.0) - torch.maximum(SIDE * low[:, None], pixel)
    return inside.clamp(0, 1)


def label_share(seed: int, epochs: int) -> float:
    """The highest I(T; Y) over H(Y) that the noisy layer comes to."""
    shapes = data.load(f"shapes:n=6000+seed={seed}")
    assert isinstance(shapes.x, Tensor)
    x, y = shapes.x.float(), shapes.y
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.Tanh(), nn.Linear(16, 6),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    looked = slice(4000, 6000)
    plane = InformationPlane(LossyMI("pca", "pca", dim=5), model, x[looked], y[looked], ["8"])
    with noisy_activations(model, ["8"], 0.1):
        for epoch in range(1, epochs + 1):
            for rows in torch.randperm(4000).split(64):
                loss = F.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch % 4 == 0:
                plane.record(epoch)
    p = torch.bincount(y[looked]).double() / (looked.stop - looked.start)
    return float(plane.values[:, 0, 1].max() / -(p * p.log2()).sum())
