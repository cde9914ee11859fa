"""Terminator: blocks of slow and fast networks on the full image, without residual connections."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers import SFNEBlock, slow_neural_loss
from logitkit.models.base import Backbone, check_images, check_inputs
from logitkit.registry import Choice, Real, part


@part(
    "terminator",
    "models",
    title="HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction",
    paper="arXiv:2401.17948",
    number=125,
    companion_of="hyperzzw",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"hidden": Choice(8, 16, 32), "w0": Real(0.1, 10.0, log=True)},
    no_gradcheck="local kernels pass gradients through one of two summands",
)
class Terminator(Backbone):
    """A network without residual connections or pooling between its blocks, for small images: every block
    sees the whole image in full resolution.

    Equation: x_(i+1) = dropout(SFNE(x_i, earlier maps)), see `layers.HyperZZW`; the third and fourth block
    also get the map before theirs, and later ones two. Feature map = the last x, features = its mean over
    positions.

    Shapes: x (batch, channels, height, width) -> feature map (batch, widths[-1], side, side), pooled to
    (batch, widths[-1]), unitless; an image that is not square is padded with zeros.

    Defaults: widths 12, 24 and 48 for small grey images; the authors have five blocks to 288 channels on
    CIFAR-10, with 5 % of channels dropped after all but the first. `slow_loss` is their regulariser of global
    kernels, to be added to the loss.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), widths that are not
    multiples of one another and of the channels, dropout outside [0, 1), an input of another shape or dtype,
    an empty batch or NaN.

    Source: Harvie Zhang, 2024, arXiv:2401.17948, section 3.5; the authors' configuration.

    Not for: images beyond some 64 pixels a side, as all maps are as large as the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        widths: Sequence[int] = (12, 24, 48),
        hidden: int = 16,
        layers: int = 2,
        w0: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "terminator")
        every = [channels, *widths]
        if len(every) < 2 or any(b < 1 or b % a for a, b in itertools.pairwise(every)):
            raise ValueError(
                f"widths must be multiples of one another and of {channels} channels, got {widths}."
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        side = max(height, width)
        self.padding = (0, side - width, 0, side - height)
        self.before = [min(2, i // 2) for i in range(len(widths))]
        self.blocks = nn.ModuleList(
            SFNEBlock(a, side, b, before, hidden, layers, w0)
            for a, b, before in zip(every, widths, self.before, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.out_features = every[-1]

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d side side"]:
        maps = [F.pad(check_inputs(x, self.input_shape), self.padding)]
        for i, (block, before) in enumerate(zip(self.blocks, self.before, strict=True)):
            made = block(maps[-1], maps[i - before : i])
            maps.append(self.dropout(made) if i else made)
        return maps[-1]

    def pool(self, map: Float[Tensor, "batch d side side"]) -> Float[Tensor, "batch d"]:
        return map.mean(dim=(2, 3))

    def slow_loss(self) -> Float[Tensor, ""]:
        """`slow_neural_loss` of the blocks' global kernels."""
        return slow_neural_loss([block.slow() for block in self.blocks if isinstance(block, SFNEBlock)])
