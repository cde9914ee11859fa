"""The CSWin transformer: stages of blocks with cross-shaped windows, each wider and coarser than the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import CrossShapedAttention
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.models.vit import Block, Layers
from logitkit.registry import Choice, part


@part(
    "cswin",
    "models",
    title="CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
    paper="arXiv:2107.00652",
    number=224,
    companion_of="cswin",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"dim": Choice(16, 32, 48)},
)
class CSWin(Backbone):
    """CSWin transformer: a backbone for images of many tokens, whose attention has to see across them.

    Equation: z <- z + CSWin(LN z), z <- z + MLP(LN z) in every block. Stages begin with a convolution and LN:
    the first with stride `patch`, the others 3x3 with stride 2 and twice the channels. Features are the mean
    of LN of the last.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, features), pooled to (batch,
    features), unitless.

    Defaults: two small stages, for images of 8x8 to 32x32 pixels; the patch is the smallest power of two that
    leaves at most 256 tokens. The paper's smallest is dim=64, depths=(1, 2, 21, 1), heads=(2, 4, 8, 16),
    stripes=(1, 2, 7, 7), patch=4 at 224x224. No absolute positions: LePE tells where tokens are.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), stages of different number,
    heads that are odd or do not divide their stage's dim, an input of another shape or dtype, an empty batch
    or NaN.

    Source: Dong et al., CVPR 2022, arXiv:2107.00652, section 3.1 and table 1; the stem's and the merging
    blocks' sizes as in the authors' cswin.py.

    Not for: images of a few tokens, where attention to all of them costs as little.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dim: int = 32,
        depths: Sequence[int] = (1, 2),
        heads: Sequence[int] = (2, 4),
        stripes: Sequence[int] = (1, 2),
        patch: int | None = None,
        dropout: float = 0.0,
        lepe: bool = True,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "cswin")
        if not len(depths) == len(heads) == len(stripes) >= 1 or min(depths) < 1:
            raise ValueError(
                "depths, heads and stripes must name the same stages, each of at least one block, got"
                f" {tuple(depths)}, {tuple(heads)} and {tuple(stripes)}."
            )
        patch, grid = patches_of(height, width, patch, most=256)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.stages = nn.ModuleList()
        for stage, (depth, count, stripe) in enumerate(zip(depths, heads, stripes, strict=True)):
            if stage == 0:
                down = nn.Conv2d(channels, dim, 2 * patch - 1, stride=patch, padding=patch // 2)
            else:
                down = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
                dim, grid = 2 * dim, (-(-grid[0] // 2), -(-grid[1] // 2))
            layers = Layers(attention=partial(CrossShapedAttention, stripe=stripe, lepe=lepe))
            place: dict[str, Any] = {"grid": grid}
            blocks = (Block(dim, count, dropout, layers=layers, **place) for _ in range(depth))
            self.stages.append(
                nn.ModuleDict({"down": down, "norm": nn.LayerNorm(dim), "blocks": nn.Sequential(*blocks)})
            )
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens features"]:
        map = F.pad(check_inputs(x, self.input_shape), self.padding)
        tokens = map
        for stage in self.stages:
            map = stage["down"](map)  # type: ignore[index]
            tokens = stage["norm"](map.flatten(2).mT)  # type: ignore[index]
            tokens = stage["blocks"](tokens)  # type: ignore[index]
            map = tokens.mT.unflatten(2, map.shape[2:])
        return self.norm(tokens)

    def pool(self, map: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch features"]:
        return map.mean(dim=1)
