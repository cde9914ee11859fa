"""152: attention of an Inception mixer is left with what is coarse, and the mixer beats attention alone.

Set beforehand: the grey shapes of 32x32 pixels with one of two textures, 12 classes; the share of spectral
energy above half the Nyquist frequency in the branches; against attention alone with parameters within 5 %;
seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- Textures are stripes over the whole image, of a random direction and phase and amplitude 0.15, with a period
  of 8 or 3 pixels. 2,500 images, 1,500 of them to train on.
- Patches of 4x4, two blocks of dim 32 with 4 heads, of which 2 attend after pooling over 2x2 tokens;
  attention alone is `vit` with a feed-forward width of 120. Batches of 32, AdamW at 3e-3 with warm-up and the
  cosine schedule, 20 epochs (attention alone, seed 7: 38 % after 10).
- Spectra are those of the branches' maps of the test images, without their means; above half Nyquist means
  that either frequency is above a quarter of a cycle per token. The high branch is that of convolution and
  that of pooling together. Shares are means over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, ratio
from logitkit.engine import Prepared, Recipe
from logitkit.layers import InceptionMixer
from logitkit.models import IFormer, ViT
from logitkit.models.vit import feed_forward

PERIODS, AMPLITUDE = (8.0, 3.0), 0.15


@claim(
    "layers",
    "iformer",
    statement="On shapes with textures, the attention branch of an Inception mixer has at most half the share"
    " of high spectral energy of the other branches, and the network is a point better than one of"
    " attention alone.",
    seeds=range(3),
)
def iformer(trial: Trial) -> list[Check]:
    right: dict[str, list[float]] = {"iformer": [], "vit": []}
    share: dict[str, list[float]] = {"low": [], "high": []}
    settings = {"batch_size": 32, "lr": 3e-3, "warmup": 0.1, "epochs": 20}
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(textured(trial.few(2500, 300), seed), seed))
        for arm, model in (("iformer", Inception), ("vit", Attention)):
            recipe = Recipe.of(model=model, **settings, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network.eval()
            right[arm].append(accuracy(network, prepared.test))
            if model is Inception:
                low, high = high_shares(network, prepared.test[0])
                share["low"].append(low)
                share["high"].append(high)
    return [
        ratio("share of high spectral energy: attention over convolution and pooling", "<=", 0.5, **share),
        difference("test accuracy, points: Inception mixers minus attention alone", ">=", 1, **right),
    ]  # fmt: skip


def textured(n: int, seed: int) -> data.Dataset:
    """Shapes with stripes over them; the class is that of the shape and of the stripes' period."""
    shapes = data.load(f"shapes:n={n}+seed={seed}")
    assert isinstance(shapes.x, Tensor)
    g = torch.Generator().manual_seed(seed)
    fine = torch.randint(2, (n,), generator=g)
    angle, phase = (2 * math.pi * torch.rand(2, n, generator=g)).unbind()
    side = torch.arange(float(shapes.x.shape[-1]))
    along = side * angle.cos()[:, None, None] + side[:, None] * angle.sin()[:, None, None]
    waves = (2 * math.pi * along / torch.tensor(PERIODS)[fine][:, None, None] + phase[:, None, None]).sin()
    names = [f"{name}, {kind}" for name in shapes.class_names or () for kind in ("coarse", "fine")]
    x = shapes.x + AMPLITUDE * waves[:, None]
    return data.Dataset("textured shapes", x, 2 * shapes.y + fine, "classification", "image", tuple(names))


class Inception(IFormer):
    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(
            input_shape, dims=(32,), depths=(2,), heads=(4,), attn_heads=((2, 2),), pools=(2,), patch=4
        )


class Attention(ViT):
    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(
            input_shape, patch=4, dim=32, depth=2, heads=4, mlp=lambda d, _: feed_forward(d, 120)
        )


@torch.no_grad()
def high_shares(network: nn.Module, x: Tensor) -> tuple[float, float]:
    """Shares of high spectral energy in what attention makes, and in what convolution and pooling make."""
    low, high = [], []

    def look(mixer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(mixer, InceptionMixer)
        *fine, coarse = mixer.branches(inputs[0].mT.unflatten(2, mixer.grid))
        low.append(high_share(coarse))
        high.append(high_share(torch.cat(fine, 1)))

    handles = [m.register_forward_pre_hook(look) for m in network.modules() if isinstance(m, InceptionMixer)]
    network(x)
    for handle in handles:
        handle.remove()
    return sum(low) / len(low), sum(high) / len(high)


def high_share(maps: Tensor) -> float:
    """The share of energy above half the Nyquist frequency, without the mean."""
    energy = torch.fft.fft2(maps - maps.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
    down, right = (torch.fft.fftfreq(n).abs() > 0.25 for n in energy.shape)
    return (energy[down[:, None] | right].sum() / energy.sum()).item()
