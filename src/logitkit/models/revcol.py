"""RevCol: columns of one network side by side, each of which can be computed back from the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import ChannelNorm, DropPath, check_maps, check_whole
from logitkit.models.base import Backbone, check_images, check_inputs
from logitkit.registry import Choice, Real, part

LEVELS = 4
LEAST = 1e-3
"""How close to 0 a shortcut's factor may come."""

Column = list[Tensor]


class ConvNeXtBlock(nn.Module):
    """x + g W_2 gelu(W_1 LN(conv(x))) with a depthwise 3x3 convolution and g from 1e-6; W_1 x has `expand`
    times as many channels."""

    def __init__(self, channels: int, drop_path: float = 0.0, expand: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, expand * channels, 1), nn.GELU(), nn.Conv2d(expand * channels, channels, 1)
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.drop = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return x + self.drop(self.scale * self.mlp(self.norm(self.conv(x))))


class Level(nn.Module):
    """F_l: blocks on Down(below) + Up(above), the map of the level below in this column and that of the level
    above in the column before; the lowest level takes the stem's map as it is."""

    def __init__(
        self, below: int | None, channels: int, above: int | None, depth: int, drop_path: float
    ) -> None:
        super().__init__()
        self.down: nn.Module = nn.Identity()
        if below is not None:
            self.down = nn.Sequential(
                nn.Conv2d(below, channels, 2, stride=2), ChannelNorm(channels, eps=1e-6)
            )
        self.up = None
        if above is not None:
            convs = nn.Conv2d(above, channels, 1), ChannelNorm(channels, eps=1e-6)
            self.up = nn.Sequential(*convs, nn.Upsample(scale_factor=2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels, drop_path) for _ in range(depth)))

    def forward(self, below: Tensor, above: Tensor | None) -> Tensor:
        x = self.down(below)
        return self.blocks(x if self.up is None or above is None else x + self.up(above))


class ReversibleColumns(nn.Module):
    """`columns` networks of four levels, each of which keeps what the one before knows:
    c_l^t = F_l(c_(l-1)^t, c_(l+1)^(t-1)) + a_l^t c_l^(t-1), c_(-1) = x and c^0 = 0.

    dims, depths: channels and blocks of the levels, lowest first. save_memory: keep one column for the
    backward pass and compute the others back from it, c_l^(t-1) = (c_l^t - F_l) / a_l^t from the top; F_l is
    run again, with the same random numbers. drop_path: the rate of stochastic depth.

    Shapes: x (batch, dims[0], h, w), h and w multiples of 8 -> maps (batch, dims[l], h / 2^l, w / 2^l).
    Raises: ValueError for other than four dims and depths, sizes below 1, inputs of another shape or dtype.
    """

    def __init__(
        self,
        columns: int,
        dims: Sequence[int],
        depths: Sequence[int],
        save_memory: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole(columns=columns)
        if not len(dims) == len(depths) == LEVELS or min(*dims, *depths) < 1:
            raise ValueError(f"dims and depths must hold {LEVELS} positive numbers, got {dims} and {depths}.")
        self.dims, self.save_memory, self.random = tuple(dims), save_memory, drop_path > 0
        self.columns, self.factors = nn.ModuleList(), nn.ModuleList()
        for t in range(columns):
            levels = [
                Level(
                    dims[i - 1] if i else None,
                    dims[i],
                    dims[i + 1] if t and i + 1 < LEVELS else None,
                    depths[i],
                    drop_path,
                )
                for i in range(LEVELS)
            ]
            self.columns.append(nn.ModuleList(levels))
            factors = [nn.Parameter(torch.full((dim, 1, 1), 0.5)) for dim in dims] if t else []
            self.factors.append(nn.ParameterList(factors))

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Column:
        """The maps of the last column."""
        return self.several(x, [len(self.columns) - 1])[0]

    def several(self, x: Float[Tensor, "batch channels h w"], at: Sequence[int]) -> list[Column]:
        """The maps of the columns in `at`, from 0 and rising; with save_memory they are what is kept."""
        x = check_maps(x, self.dims[0])
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"height and width must be multiples of 8, got {tuple(x.shape[2:])}.")
        keep = not self.save_memory or not torch.is_grad_enabled() or torch.compiler.is_compiling()
        found: list[Column] = []
        column: Column = []
        start = 0
        for t in at:
            chosen = range(start, t + 1)
            if keep:
                for each in chosen:
                    column = self._next(each, x, column)
            else:
                weights = [p for each in chosen for p in self.columns[each].parameters()]
                factors = [a for each in chosen for a in self._factors(each)]
                column = list(_Reversed.apply(self, chosen, len(factors), x, *column, *factors, *weights))
            found.append(column)
            start = t + 1
        return found

    @torch.no_grad()
    def invert(self, x: Float[Tensor, "batch channels h w"], last: Column) -> Column:
        """The maps of the first column, of those of the last and the stem's, in evaluation mode."""
        for t in range(len(self.columns) - 1, 0, -1):
            before: Column = []
            for i in range(LEVELS - 1, -1, -1):
                made = self._level(t, i, x, last, before[0] if before else None)
                before.insert(0, (last[i] - made) / self._factors(t)[i])
            last = before
        return last

    def _next(self, t: int, x: Tensor, column: Column) -> Column:
        """Column t of the one before."""
        made: Column = []
        for i in range(LEVELS):
            above = column[i + 1] if column and i + 1 < LEVELS else None
            map = self._level(t, i, x, made, above)
            made.append(map + self._factors(t)[i] * column[i] if column else map)
        return made

    def _level(self, t: int, i: int, x: Tensor, column: Column, above: Tensor | None) -> Tensor:
        level: Any = self.columns[t]
        return level[i](column[i - 1] if i else x, above)

    def _factors(self, t: int) -> list[Tensor]:
        """The shortcuts' factors, held away from 0; the gradient does not see that."""
        factors: Any = self.factors[t]
        return [a + (torch.where(a < 0, -1, 1) * a.abs().clamp(min=LEAST) - a).detach() for a in factors]


class _Reversed(torch.autograd.Function):
    """Some columns, after those that made `column`. Inputs: how many factors there are, x, the four maps of
    the column before or none, the factors, the weights."""

    @staticmethod
    def forward(
        ctx: Any, net: ReversibleColumns, chosen: range, factors: int, x: Tensor, *rest: Tensor
    ) -> Any:
        column = list(rest[: LEVELS if chosen.start else 0])
        kept = rest[len(column) : len(column) + factors]
        ctx.net, ctx.chosen, ctx.before = net, chosen, len(column)
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        ctx.states = []
        for t in chosen:
            made: Column = []
            for i in range(LEVELS):
                ctx.states.append(_state(x.device) if net.random and net.training else None)
                above = column[i + 1] if column and i + 1 < LEVELS else None
                map = net._level(t, i, x, made, above)
                made.append(map + kept[_place(chosen, t) + i] * column[i] if column else map)
            column = made
        ctx.save_for_backward(x, *column, *kept)
        return tuple(column)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *saved = ctx.saved_tensors
        column, factors = saved[:LEVELS], saved[LEVELS:]
        net, chosen = ctx.net, ctx.chosen
        into = list(grads)
        enabled, dtype = ctx.autocast
        x_grad = torch.zeros_like(x)
        factor_grads = [torch.zeros_like(a) for a in factors]
        weight_grads: dict[int, list[Tensor | None]] = {}
        for t in reversed(chosen):
            level_grads: list[list[Tensor | None]] = []
            before: Column = []
            out: list[Tensor] = []
            for i in range(LEVELS - 1, -1, -1):
                below = (column[i - 1] if i else x).detach().requires_grad_()
                above = before[0].detach().requires_grad_() if before else None
                weights = list(net.columns[t][i].parameters())
                state = ctx.states[LEVELS * (t - chosen.start) + i]
                with (
                    torch.enable_grad(),
                    torch.autocast(x.device.type, dtype=dtype, enabled=enabled),
                    _replayed(state, x.device),
                ):
                    made = net.columns[t][i](below, above)
                wanted = [each for each in (below, above) if each is not None] + weights
                found: list[Any] = list(
                    torch.autograd.grad(made, wanted, into[i].to(made.dtype), allow_unused=True)
                )
                to_below = found.pop(0)
                if i:
                    into[i - 1] = into[i - 1] + to_below
                else:
                    x_grad = x_grad + to_below
                if above is not None:
                    out[0] = out[0] + found.pop(0)
                level_grads.insert(0, found)
                if t:
                    a = factors[_place(chosen, t) + i]
                    before.insert(0, (column[i] - made.detach()) / a)
                    out.insert(0, a * into[i])
                    factor_grads[_place(chosen, t) + i] = (into[i] * before[0]).sum((0, 2, 3))[:, None, None]
            weight_grads[t] = [g for each in level_grads for g in each]
            column, into = before, out
        given = into if ctx.before else []
        weights = [g for t in chosen for g in weight_grads[t]]
        return None, None, None, x_grad, *given, *factor_grads, *weights


def _place(chosen: range, t: int) -> int:
    """Where the factors of column t begin among those of the chosen; the first column of all has none."""
    return LEVELS * (t - max(chosen.start, 1))


def _state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


class _replayed:
    """Draw again what was drawn after `state`, and leave the generators as they are."""

    def __init__(self, state: tuple[Tensor, Tensor | None] | None, device: torch.device) -> None:
        self.state, self.device = state, device
        devices = [device] if device.type == "cuda" else []
        self.fork: Any = nullcontext() if state is None else torch.random.fork_rng(devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        if self.state is not None:
            torch.set_rng_state(self.state[0])
            if self.state[1] is not None:
                torch.cuda.set_rng_state(self.state[1], self.device)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


@part(
    "revcol",
    "models",
    title="Reversible Column Networks",
    paper="arXiv:2212.11696",
    number=222,
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"columns": Choice(2, 4, 8), "drop_path": Real(0.0, 0.2)},
)
class RevCol(Backbone):
    """Reversible columns on images: a deep network whose memory in training does not grow with its columns,
    and that keeps in each column what the one before knew.

    Equation: see `ReversibleColumns`, F_l of ConvNeXt blocks, on a stem of patches with layer normalisation;
    feature map = level 3 of the last column, features = LN of its mean over positions.

    Shapes: x (batch, channels, height, width) -> feature map (batch, dims[3], h, w), pooled to
    (batch, dims[3]), unitless.

    Defaults: 4 columns as the authors' smallest, with dims 16, 32, 64 and 64 and one block a level for small
    images, where they have 64 to 512 and 2, 2, 4 and 2; factors of shortcuts start at 0.5 and stay 1e-3 away
    from 0, weights at N(0, 0.02^2). Patches are as large as leave at most 8 on the longer side, up to their
    4x4; an image that the patches and three halvings do not divide is padded with zeros.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), other than four dims and
    depths, an input of another shape or dtype, an empty batch or NaN.

    Source: Cai et al., ICLR 2023, arXiv:2212.11696, equations 3 and 4 and section 2.2; the authors'
    `revcol.py` keeps every column's maps, and no others, where this keeps the last column's alone.

    Not for: factors near 0 over many columns, as inversion multiplies rounding by 1 / a for each; in 16 bits
    it is worth a look at `save_memory=False`. Under `torch.compile` everything is kept.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        columns: int = 4,
        dims: Sequence[int] = (16, 32, 64, 64),
        depths: Sequence[int] = (1, 1, 1, 1),
        drop_path: float = 0.0,
        save_memory: bool = True,
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "revcol")
        patch = 1
        while patch < 4 and max(height, width) > 8 * patch:
            patch *= 2
        self.padding = (0, -width % (8 * patch), 0, -height % (8 * patch))
        self.patch = patch
        self.net = ReversibleColumns(columns, dims, depths, save_memory, drop_path)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, dims[0], patch, stride=patch), ChannelNorm(dims[0], eps=1e-6)
        )
        self.norm = nn.LayerNorm(dims[3], eps=1e-6)
        self.apply(_start)
        self.out_features = dims[3]

    def stem_map(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim h w"]:
        """What all columns read."""
        return self.stem(F.pad(check_inputs(x, self.input_shape), self.padding))

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch d h w"]:
        return self.net(self.stem_map(x))[3]

    def pool(self, map: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d"]:
        return self.norm(map.mean(dim=(2, 3)))


class ColumnDecoder(nn.Module):
    """An image from the highest map of a column: three times a 1x1 convolution to the level below, LN, GELU,
    twice the size by bilinear interpolation, and a ConvNeXt block; then the pixels of each patch.

    Shapes: (batch, dims[3], h, w) -> logits of pixels (batch, channels, 8 patch h, 8 patch w).
    Raises: ValueError for other than four dims, sizes below 1, inputs of another shape or dtype.
    """

    def __init__(self, dims: Sequence[int], channels: int, patch: int = 4) -> None:
        super().__init__()
        check_whole(channels=channels, patch=patch)
        if len(dims) != LEVELS or min(dims) < 1:
            raise ValueError(f"dims must hold {LEVELS} positive numbers, got {dims}.")
        self.features = dims[-1]
        layers: list[nn.Module] = []
        for above, below in zip(dims[:0:-1], dims[-2::-1], strict=True):
            layers += [
                nn.Conv2d(above, below, 1),
                ChannelNorm(below, eps=1e-6),
                nn.GELU(),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
                ConvNeXtBlock(below, expand=1),
            ]
        self.layers = nn.Sequential(*layers)
        self.pixels = nn.Sequential(nn.Conv2d(dims[0], channels * patch**2, 1), nn.PixelShuffle(patch))
        self.apply(_start)

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, "batch channels height width"]:
        return self.pixels(self.layers(check_maps(x, self.features)))


class SupervisedColumns(nn.Module):
    """A `RevCol` with a classifier on each column in `at`, and a decoder on each but the last: called on
    images, the reconstructions and the scores that `compound_loss` takes.

    at: which columns, rising, by default four at equal distances, or all of fewer, the last among them. Once
    trained, `backbone` and the last of `classifiers` are the model.

    Raises: ValueError for columns that do not rise or are not there, or fewer than 1 class.
    """

    def __init__(self, backbone: RevCol, num_classes: int, at: Sequence[int] | None = None) -> None:
        super().__init__()
        check_whole(num_classes=num_classes)
        columns = len(backbone.net.columns)
        if at is None:
            number = min(columns, 4)
            at = [(i + 1) * columns // number - 1 for i in range(number)]
        if not at or list(at) != sorted(set(at)) or not 0 <= at[0] <= at[-1] < columns:
            raise ValueError(f"at must rise within the {columns} columns, got {list(at)}.")
        self.backbone, self.at = backbone, tuple(at)
        channels, dims = backbone.input_shape[0], backbone.net.dims
        self.decoders = nn.ModuleList(ColumnDecoder(dims, channels, backbone.patch) for _ in at[1:])
        self.classifiers = nn.ModuleList(_classifier(dims[3], num_classes) for _ in at)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[list[Float[Tensor, "batch channels height width"]], list[Float[Tensor, "batch classes"]]]:
        tops = [column[3] for column in self.backbone.net.several(self.backbone.stem_map(x), self.at)]
        images = [
            decoder(top)[..., : x.shape[2], : x.shape[3]]
            for decoder, top in zip(self.decoders, tops, strict=False)
        ]
        scores = [
            classifier(top.mean(dim=(2, 3))) for classifier, top in zip(self.classifiers, tops, strict=True)
        ]
        return images, scores


def _classifier(features: int, num_classes: int) -> nn.Sequential:
    linear = nn.Linear(features, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(features, eps=1e-6), linear)


def compound_loss(
    images: Sequence[Float[Tensor, "batch channels h w"]],
    scores: Sequence[Float[Tensor, "batch classes"]],
    image: Float[Tensor, "batch channels h w"],
    target: Int[Tensor, " batch"],
    alpha: float = 4.0,
    beta: float = 0.8,
) -> Float[Tensor, ""]:
    """Supervision of n columns: the cross-entropy of the last one's scores, and for the i-th of the others,
    counted from 0, alpha (1 - i / (n - 1)) times the binary cross-entropy of its reconstruction (logits of
    pixels in [0, 1], which are held in [0.01, 0.99]), and beta (i + 1) / n times the cross-entropy of its
    scores. The defaults are the authors'. `SupervisedColumns` makes both.

    Raises: ValueError for other than one reconstruction less than scores.
    """
    n = len(scores)
    if n < 1 or len(images) != n - 1:
        raise ValueError(f"expected an image less than scores, got {len(images)} and {n}.")
    total = F.cross_entropy(scores[-1], target)
    pixels = image.clamp(0.01, 0.99)
    for i, made in enumerate(images):
        total = total + alpha * (1 - i / (n - 1)) * F.binary_cross_entropy_with_logits(made, pixels)
        total = total + beta * (i + 1) / n * F.cross_entropy(scores[i], target)
    return total


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
