"""RaftMLP: token mixing by rows and columns, over several channels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_maps, check_tokens, check_whole
from logitkit.ops.grid import merge_windows, windows
from logitkit.registry import Choice, part

Size = tuple[int, int]


def rafts(
    lines: Float[Tensor, "batch lines length dim"], raft: int
) -> Float[Tensor, "batch lines co joined"]:
    """Each line of tokens as dim / raft rows of raft * length numbers: channel j * (dim / raft) + i of all
    its tokens is piece j of row i."""
    return lines.unflatten(3, (raft, -1)).permute(0, 1, 4, 3, 2).flatten(3)


def merge_rafts(
    rows: Float[Tensor, "batch lines co joined"], raft: int
) -> Float[Tensor, "batch lines length dim"]:
    """The lines whose `rafts(lines, raft)` are `rows`."""
    return rows.unflatten(3, (raft, -1)).permute(0, 1, 4, 3, 2).flatten(3)


@part(
    "raft_mlp",
    "layers",
    title="RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?",
    paper="arXiv:2108.04384",
    number=186,
    replaces="mixer",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"raft": Choice(1, 2, 4), "expansion": Choice(2, 4)},
)
class RaftTokenMixer(nn.Module):
    """Mixing of a grid's tokens along columns, then rows, by a network that sees `raft` channels at once:
    in the place of attention on grids of one size, with fewer weights than MLP-Mixer's.

    Equation: y = V(x) + H(x + V(x)). V cuts LN(x) into columns, and the C channels of a column into C / r
    rafts: channels i, i + C/r, i + 2 C/r, .. of its h tokens are one vector of r h numbers, and
    W_2 gelu(W_1 .) is applied to each. H is the same with rows. x + y is the paper's token mixing.

    Shapes: x (batch, height * width, dim), in reading order -> same, unitless. W_1 has expansion * r h rows.

    Defaults: r = 2 as the authors' models of all sizes, expansion 2.

    Raises: ValueError for a raft that does not divide dim, sizes below 1, tokens that do not fill the grid,
    inputs of another width or dtype, or none.

    Source: Tatsunami and Taki, 2021, arXiv:2108.04384, section 3; the authors' `libs/modules.py`.

    Not for: grids of another size than the weights are for, which `RaftBlock` interpolates to; masked tokens.
    """

    def __init__(self, dim: int, grid: Size, raft: int = 2, expansion: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        check_whole(dim=dim, raft=raft, expansion=expansion, height=grid[0], width=grid[1])
        if dim % raft:
            raise ValueError(f"raft must divide dim, got raft {raft} and dim {dim}.")
        self.dim, self.grid, self.raft = dim, grid, raft
        self.norm_v, self.norm_h = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.vertical, self.horizontal = (mlp(raft * side, expansion, dropout) for side in grid)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        height, width = self.grid
        if x.ndim != 3 or x.shape[1] != height * width:
            raise ValueError(f"x must have shape (batch, {height * width}, dim), got {tuple(x.shape)}.")
        x = check_tokens(x, self.dim).unflatten(1, self.grid)
        v = self._along((height, 1), self.vertical, self.norm_v(x))
        h = self._along((1, width), self.horizontal, self.norm_h(x + v))
        return (v + h).flatten(1, 2)

    def _along(self, line: Size, network: nn.Module, x: Tensor) -> Tensor:
        mixed = network(rafts(windows(x, line), self.raft))
        return merge_windows(merge_rafts(mixed, self.raft), line, self.grid)


class RaftBlock(nn.Module):
    """x + tokens(x), then x + W_2 gelu(W_1 LN(x)): one block of RaftMLP.

    Shapes: x (batch, height * width, dim) -> same. Tokens of another `grid` than the block's are interpolated
    to it (bicubic), mixed, and interpolated back.
    """

    def __init__(
        self,
        dim: int,
        grid: Size,
        raft: int = 2,
        expansion: int = 2,
        channel_expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer: nn.Module = RaftTokenMixer(dim, grid, raft, expansion, dropout)
        self.grid, self.norm = grid, nn.LayerNorm(dim)
        self.mlp = mlp(dim, channel_expansion, dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid: Size | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        grid = self.grid if grid is None else grid
        x = resized(x, grid, self.grid)
        x = resized(x + self.mixer(x), self.grid, grid)
        return x + self.mlp(self.norm(x))


class MultiScaleEmbed(nn.Module):
    """Patches of several sizes around the same centres, side by side, and a linear map of each.

    Shapes: x (batch, channels, h, w) -> (batch, h/s * w/s, out), s the smallest of `kernels`, of which the
    others are multiples; zeros lie around the image.
    """

    def __init__(self, channels: int, out: int, kernels: Sequence[int]) -> None:
        super().__init__()
        check_whole(channels=channels, out=out, kernels=min(kernels, default=0))
        self.channels, self.kernels, self.stride = channels, tuple(kernels), min(kernels)
        for kernel in kernels:
            if kernel % self.stride or (kernel - self.stride) % 2:
                raise ValueError(
                    f"kernels must be multiples of {self.stride} with one centre, got {kernels}."
                )
        self.fc = nn.Linear(channels * sum(kernel**2 for kernel in kernels), out)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch tokens out"]:
        x = check_maps(x, self.channels)
        patches = [
            F.unfold(x, kernel, padding=(kernel - self.stride) // 2, stride=self.stride)
            for kernel in self.kernels
        ]
        return self.fc(torch.cat(patches, dim=1).mT)


def mlp(width: int, expansion: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, Linear, dropout."""
    inner = nn.Linear(width, expansion * width), nn.GELU(), nn.Dropout(dropout)
    return nn.Sequential(*inner, nn.Linear(expansion * width, width), nn.Dropout(dropout))


def resized(x: Float[Tensor, "batch tokens dim"], grid: Size, to: Size) -> Float[Tensor, "batch tokens2 dim"]:
    """Tokens of one grid interpolated to another."""
    if grid == to:
        return x
    maps = x.mT.unflatten(2, grid)
    return F.interpolate(maps, to, mode="bicubic", align_corners=False).flatten(2).mT
