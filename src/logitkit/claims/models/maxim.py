"""140: MAXIM takes noise from images, and mixing over a grid helps it.

Set beforehand: images of 32x32 pixels of SHAPES, Gaussian noise of sd 0.2, 400 steps; at least 5 dB over the
input, and no less than an ablation with blocks only; seeds 0-2.
Left open, and chosen before the first run:
- The clean images are SHAPES without their own noise, 1500 to train on and 500 others; new noise in each
  batch, the same in both arms. PSNR is the mean over images, with a peak of 1; outputs are not clipped.
- One stage of depth 2, 8 features, blocks and lattices of 4x4; in the ablation what mixes lattices mixes
  blocks too, with as many weights. `maxim_loss`, Adam at 2e-3 with the cosine schedule, batches of 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference
from logitkit.data.base import seeded
from logitkit.engine.run import isolated
from logitkit.models import MAXIM, maxim_loss
from logitkit.models.maxim import AxisLinear

NOISE, TRAIN, BATCH = 0.2, 1500, 8


@claim(
    "models",
    "maxim",
    statement="400 steps of MAXIM take noise of sd 0.2 from images of shapes, to 5 dB above the input and no"
    " less than with blocks only.",
    seeds=range(3),
)
def maxim(trial: Trial) -> list[Check]:
    scores: dict[str, list[float]] = {"maxim": [], "blocks": [], "input": []}
    for seed in trial.seeds:
        images = data.load(f"shapes:n=2000,sd=0+seed={seed}").x
        assert isinstance(images, Tensor)
        order = torch.randperm(len(images), generator=seeded("maxim_split", seed))
        train, test = images[order[:TRAIN]], images[order[TRAIN:]]
        noisy = test + NOISE * torch.randn(test.shape, generator=seeded("maxim_test", seed))
        scores["input"].append(psnr(noisy, test))
        for arm, dilated in (("maxim", True), ("blocks", False)):
            with isolated(1):
                model = denoiser(train, seed, dilated, trial.few(400, 5))
                with torch.no_grad():
                    restored = torch.cat([model(each) for each in noisy.split(100)])
            scores[arm].append(psnr(restored, test))
    return [
        difference("PSNR, dB: MAXIM minus input", ">=", 5, maxim=scores["maxim"], input=scores["input"]),
        difference("PSNR, dB: MAXIM minus MAXIM with blocks only", ">=", 0,
                   maxim=scores["maxim"], blocks=scores["blocks"]),
    ]  # fmt: skip


def denoiser(train: Tensor, seed: int, dilated: bool, steps: int) -> MAXIM:
    torch.manual_seed(seed)
    model = MAXIM(1, depth=2, features=8)
    for layer in model.modules():
        if isinstance(layer, AxisLinear):
            layer.dilated = layer.dilated and dilated
    g = seeded("maxim_noise", seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        clean = train[torch.randint(len(train), (BATCH,), generator=g)]
        noisy = clean + NOISE * torch.randn(clean.shape, generator=g)
        loss = maxim_loss(model.outputs(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def psnr(images: Tensor, clean: Tensor) -> float:
    return float(-10 * (images - clean).square().mean((1, 2, 3)).log10().mean())
