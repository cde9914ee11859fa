"""RaftMLP: a pyramid of token-mixing blocks."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers import MultiScaleEmbed, RaftBlock
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.registry import Choice, part


@part(
    "raft_mlp",
    "models",
    title="RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?",
    paper="arXiv:2108.04384",
    number=186,
    companion_of="raft_mlp",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"raft": Choice(1, 2, 4), "dims": Choice((32, 64), (48, 96))},
)
class RaftMLP(Backbone):
    """Levels of mixing by columns, rows and channels: a backbone without attention or convolutions for images
    of one size.

    Equation: at each level tokens = embed(map), patches of several sizes around the same centres, then
    `depth` times `layers.RaftBlock`; feature map = LN of the last level's tokens, features = its mean.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens, dims[-1]), pooled to
    (batch, dims[-1]), unitless.

    Defaults: two levels of two blocks for small images, where the authors' smallest has four of 2, 2, 6 and 2
    with dims from 64 to 512; first the patch of `vit` and its double, then 2 and 4, the last level 2 alone;
    r = 2. An image, or a level's map, that patches do not divide is padded with zeros, where the authors
    interpolate.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), other than one kernels per
    level, a raft that does not divide the dims, an input of another shape or dtype, an empty batch or NaN.

    Source: Tatsunami and Taki, 2021, arXiv:2108.04384, sections 3 and 4; the authors' `libs/models.py`.

    Not for: images of several sizes.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dims: Sequence[int] = (32, 64),
        depths: Sequence[int] = (2, 2),
        kernels: Sequence[Sequence[int]] | None = None,
        raft: int = 2,
        expansion: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "raft_mlp")
        if kernels is None:
            patch, _ = patches_of(height, width)
            levels = len(dims)
            kernels = [(k,) if level == levels - 1 else (k, 2 * k) for level, k in
                       enumerate([patch, *[2] * (levels - 1)])]  # fmt: skip
        if not len(dims) == len(depths) == len(kernels) > 0 or min(depths) < 1:
            raise ValueError(
                "dims, depths and kernels must have an entry for each level, and a level at least one block,"
                f" got {dims}, {depths} and {kernels}."
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.paddings: list[tuple[int, int, int, int]] = []
        self.grids: list[tuple[int, int]] = []
        self.embeds, self.levels = nn.ModuleList(), nn.ModuleList()
        for dim, depth, sizes in zip(dims, depths, kernels, strict=True):
            embed = MultiScaleEmbed(channels, dim, sizes)
            self.paddings.append((0, -width % embed.stride, 0, -height % embed.stride))
            grid = height, width = -(-height // embed.stride), -(-width // embed.stride)
            self.grids.append(grid)
            self.embeds.append(embed)
            blocks = (RaftBlock(dim, grid, raft, expansion, dropout=dropout) for _ in range(depth))
            self.levels.append(nn.Sequential(*blocks))
            channels = dim
        self.norm = nn.LayerNorm(channels)
        self.out_features = channels

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        x = check_inputs(x, self.input_shape)
        for padding, grid, embed, blocks in zip(
            self.paddings, self.grids, self.embeds, self.levels, strict=True
        ):
            tokens = blocks(embed(F.pad(x, padding)))
            x = tokens.mT.unflatten(2, grid)
        return self.norm(tokens)

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map.mean(dim=1)
