"""197: SpaRTAN is as accurate on shapes as a ConvNeXt of twice its parameters, and its wave mixing helps.

Set beforehand: SHAPES, equal epochs; at most 60,000 parameters, and twice as many for the ConvNeXt-style net;
a channel MLP of as many parameters in the place of the wave mixer; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- SpaRTAN has widths 24 and 32 and is otherwise `model=spartan`. The other net has its stem and halving, and
  two stages of two ConvNeXt blocks (7x7 depthwise convolution, layer normalisation over channels,
  W_2 gelu(W_1 .) of four times the width, a scale per channel from 1e-6) of widths 40 and 64.
- The channel MLP is W_2 gelu(W_1 x) on each pixel, its hidden layer as wide as the parameters allow.
- AdamW, batches of 32, cosine schedule after a tenth of warm-up, 10 epochs at 4e-3, the better of two rates
  for the ConvNeXt-style net (seed 7, 15 epochs: 65.8 % at 1e-3, 90.8 at 4e-3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.layers import SpartanBlock
from logitkit.models import SpaRTAN

SETTINGS: dict[str, Any] = {"epochs": 10, "batch_size": 32, "lr": 4e-3, "warmup": 0.1}
IMAGE = (1, 32, 32)


@claim(
    "layers",
    "spartan",
    statement="On shapes SpaRTAN is within a point of a ConvNeXt-style net of twice its parameters, and"
    " half a point worse with a channel MLP in the place of its wave mixing.",
    seeds=range(3),
)
def spartan(trial: Trial) -> list[Check]:
    def accuracy(model: type[Small]) -> list[float]:
        runs = [trial.run(seed, shapes(trial, seed), model=model, **SETTINGS) for seed in trial.seeds]
        return [100 * run.metrics["accuracy"] for run in runs]

    arms = {model: accuracy(model) for model in (Small, ConvNeXt, ChannelMLP)}
    small, large, plain = (size(model) for model in arms)
    return [
        over_seeds("parameters of SpaRTAN", [small], "<=", 60_000, {}),
        over_seeds("parameters of the ConvNeXt-style net over SpaRTAN", [large / small], ">=", 1.9, {}),
        over_seeds("parameters with channel MLPs over SpaRTAN", [plain / small], ">=", 0.98, {}),
        difference("test accuracy, points: SpaRTAN minus ConvNeXt-style net", ">=", -1,
                   spartan=arms[Small], convnext=arms[ConvNeXt]),
        difference("test accuracy, points: SpaRTAN minus SpaRTAN with channel MLPs", ">=", 0.5,
                   spartan=arms[Small], mlp=arms[ChannelMLP]),
    ]  # fmt: skip


def shapes(trial: Trial, seed: int) -> data.Dataset:
    return data.load(f"shapes:n={trial.few(2500, 500)}+seed={seed}")


def size(model: type[Small]) -> int:
    return sum(p.numel() for p in model(IMAGE).parameters())


class Small(SpaRTAN):
    widths = 24, 32

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape, self.widths)


class ChannelMLP(Small):
    """SpaRTAN whose blocks mix channels by W_2 gelu(W_1 x) of as many parameters."""

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape)
        for block in self.layers:
            if isinstance(block, SpartanBlock):
                channels = block.wave.channels
                hidden = sum(p.numel() for p in block.wave.parameters()) // (2 * channels + 1)
                block.wave = nn.Sequential(  # type: ignore[assignment]
                    nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1)
                )


class ConvNeXt(Small):
    """The stem and the halving of SpaRTAN around blocks of ConvNeXt."""

    widths = 40, 64

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape)
        blocks = [
            ConvNeXtBlock(layer.wave.channels) if isinstance(layer, SpartanBlock) else layer
            for layer in self.layers
        ]
        self.layers = nn.Sequential(*blocks)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(self.conv(x).movedim(1, -1))
        return x + (self.scale * self.mlp(mixed)).movedim(-1, 1)
