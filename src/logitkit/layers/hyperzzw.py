"""HyperZ.Z.W: full-size kernels that a network of coordinates makes, times the activations they meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_maps, check_tokens, check_whole
from logitkit.registry import Choice, Real, part

Maps = Float[Tensor, "batch channels h w"]
LOCAL_SIZES = (3, 9, 5, 7)


def hyper_zzw_global(kernel: Float[Tensor, "channels h w"], x: Maps, z: Maps) -> Maps:
    """(x W) z, the product of the matrices of each channel, x W being elementwise; for square maps."""
    return (x * kernel) @ z


def hyper_zzw_local(kernel: Float[Tensor, "channels k k"], x: Maps) -> Maps:
    """Each channel's convolution with its own kernel of odd size."""
    return F.conv2d(x, kernel[:, None], padding=kernel.shape[-1] // 2, groups=len(kernel))


def hyper_zzw_gate(kernel: Float[Tensor, " *shape"], x: Float[Tensor, " batch *shape"]) -> Tensor:
    """(x W) x elementwise, the score of a gate."""
    return x * kernel * x


class SlowNet(nn.Module):
    """A kernel of any size and channels, by multiplied sines of coordinates (MAGNet): c in [-1, 1]^D,
    g_l = sin(A_l c + a_l), h_0 = g_0, h_l = g_l (B_l h_(l-1) + b_l) + p, W = V h_L + v.

    With `context`, that of local kernels, h_l is renormalised, alpha stop(h) + beta h / |h| for each hidden
    unit, and multiplied by a linear map of gelu(R u), u the mean over the batch of pooled and reduced
    features. Evaluation takes a running mean of u, so that examples do not see each other.

    Shapes: () or features (batch, channels, h, w) -> (channels, *size), unitless.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        hidden: int = 16,
        layers: int = 2,
        w0: float = 1.0,
        context: bool = False,
    ) -> None:
        super().__init__()
        check_whole(channels=channels, hidden=hidden, layers=layers)
        self.size, self.channels = tuple(size), channels
        d, number = len(self.size), math.prod(self.size)
        self.register_buffer("coordinates", grid_of(self.size), persistent=False)
        self.sines = nn.ModuleList(nn.Linear(d, hidden) for _ in range(layers + 1))
        for i, sine in enumerate(self.sines):
            assert isinstance(sine, nn.Linear)
            spread = torch.distributions.Gamma(6.0 / (i + 1), 1.0).sample((hidden, d))
            sine.weight.data *= 2 * math.pi * w0 * spread
            nn.init.zeros_(sine.bias)
        self.linears = nn.ModuleList(_linear(hidden, hidden, 1.0) for _ in range(layers))
        self.position = nn.Parameter(torch.zeros(number, 1))
        self.out = _linear(hidden, channels, 0.0)
        self.out.weight.data /= math.sqrt(number)
        self.context = Context(channels, self.size, hidden, layers) if context else None

    coordinates: Tensor

    def forward(
        self, x: Float[Tensor, "batch channels h w"] | None = None
    ) -> Float[Tensor, " channels *size"]:
        # sines of large phases mean nothing in half precision
        with torch.autocast(self.position.device.type, enabled=False):
            factors = None
            if self.context is not None and x is not None:
                factors = self.context(x.to(self.position.dtype))
            return self._made(self.coordinates.to(self.position.dtype), self.size, self.position, factors)

    def at(self, size: Sequence[int]) -> Float[Tensor, " channels *size2"]:
        """The kernel without context on a grid of another size over the same square, where positions have no
        bias of their own."""
        grid = grid_of(size).to(self.position)
        return self._made(grid, tuple(size), torch.zeros_like(grid[:, :1]), None)

    def _made(
        self, grid: Tensor, size: tuple[int, ...], position: Tensor, factors: list[Tensor] | None
    ) -> Tensor:
        h = self.sines[0](grid).sin()
        for i, linear in enumerate(self.linears):
            h = self.sines[i + 1](grid).sin() * linear(h) + position
            if factors is not None and self.context is not None:
                h = self.context.renormalised(i, h) * factors[i]
        return self.out(h).T.unflatten(1, size)


class Context(nn.Module):
    """What a local kernel knows of the features: see `SlowNet`."""

    mean: Tensor

    def __init__(self, channels: int, size: Sequence[int], hidden: int, layers: int) -> None:
        super().__init__()
        self.size, self.momentum = tuple(size), 0.1
        self.reduce, self.mix = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
        self.linears = nn.ModuleList(_linear(hidden, hidden, 1.0) for _ in range(layers))
        self.alpha = nn.Parameter(torch.ones(layers, hidden))
        self.beta = nn.Parameter(torch.full((layers, hidden), 0.1))
        self.register_buffer("mean", torch.zeros(math.prod(self.size), hidden))

    def forward(self, x: Maps) -> list[Float[Tensor, "positions hidden"]]:
        if self.training:
            u = self.reduce(F.adaptive_avg_pool2d(x, (self.size[0], self.size[1])).flatten(2).mT).mean(0)
            with torch.no_grad():
                self.mean.lerp_(u.to(self.mean.dtype), self.momentum)
        else:
            u = self.mean
        u = F.gelu(self.mix(u))
        return [linear(u) for linear in self.linears]

    def renormalised(self, i: int, h: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        return self.alpha[i] * h.detach() + self.beta[i] * F.normalize(h, dim=0)


class RGU(nn.Module):
    """Recursive gated unit: W_y (gelu(IN(k (W_q v))) + p), k = W_k x, v = W_v x, p learned per position."""

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.k, self.v, self.q, self.y = (_pointwise(channels, channels) for _ in range(4))
        self.position = nn.Parameter(torch.zeros(size))

    def forward(self, x: Maps) -> Maps:
        gated = self.k(x) * self.q(self.v(x))
        return self.y(F.gelu(F.instance_norm(gated)) + self.position)


class LocalBranch(nn.Module):
    """gelu(BN(W (conv of x with the kernel made of `of`))) + b, BN without weights."""

    def __init__(self, channels: int, size: int, hidden: int, w0: float) -> None:
        super().__init__()
        self.slow = SlowNet(channels, (size, size), hidden, 2, w0, context=True)
        self.mix, self.norm = _pointwise(channels, channels), nn.BatchNorm2d(channels, affine=False)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, of: Maps, x: Maps) -> Maps:
        return F.gelu(self.norm(self.mix(hyper_zzw_local(self.slow(of), x)))) + self.bias


class ChannelGate(nn.Module):
    """x times the sigmoid of a score of each channel's mean, by a kernel over channels."""

    def __init__(self, channels: int, hidden: int, w0: float) -> None:
        super().__init__()
        self.slow = SlowNet(1, (channels,), hidden, 2, w0)

    def score(self, x: Maps) -> Float[Tensor, "batch channels 1 1"]:
        return hyper_zzw_gate(self.slow()[0], x.mean((2, 3)))[..., None, None]

    def forward(self, x: Maps) -> Maps:
        return x * self.score(x).sigmoid()


class HyperInteraction(nn.Module):
    """x times the sigmoid of the product of a score per channel and one per position, of y."""

    def __init__(self, channels: int, size: tuple[int, int], hidden: int, w0: float) -> None:
        super().__init__()
        self.channels, self.space = ChannelGate(channels, hidden, w0), SlowNet(1, size, hidden, 2, w0)

    def forward(self, y: Maps, x: Maps) -> Maps:
        space = hyper_zzw_gate(self.space()[0], y.mean(1))[:, None]
        return x * (space * self.channels.score(y)).sigmoid()


class GroupStandardization(nn.Module):
    """Groups of neighbouring channels, at most 12, standardised over the batch and over each example in turn.

    Shapes: x (batch, channels, h, w) -> same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = math.gcd(12, channels)
        self.batch = nn.BatchNorm2d(channels // self.groups * -(-self.groups // 2), affine=False)

    def forward(self, x: Maps) -> Maps:
        groups = x.unflatten(1, (self.groups, -1))
        even = self.batch(groups[:, ::2].flatten(1, 2)).unflatten(1, (-1, groups.shape[2]))
        if self.groups == 1:
            return even.flatten(1, 2)
        odd = F.instance_norm(groups[:, 1::2].flatten(1, 2)).unflatten(1, (-1, groups.shape[2]))
        found = torch.empty_like(groups, dtype=even.dtype)
        found[:, ::2], found[:, 1::2] = even, odd
        return found.flatten(1, 2)


class SFNEBlock(nn.Module):
    """Slow-fast neural encoding: ten branches, and up to two earlier maps, side by side, mixed by one linear
    map, standardised and activated. There is no residual connection; see `HyperZZW` for the branches.

    Shapes: x (batch, channels, side, side), maps (batch, fewer channels that divide these, side, side)
    -> (batch, out, side, side).
    """

    def __init__(
        self,
        channels: int,
        side: int,
        out: int,
        before: int = 0,
        hidden: int = 16,
        layers: int = 2,
        w0: float = 1.0,
    ) -> None:
        super().__init__()
        size = side, side
        self.slow = SlowNet(channels, size, hidden, layers, w0)
        self.rgu_slow, self.rgu_fast = RGU(channels, size), RGU(channels, size)
        self.mix = _pointwise(channels, channels)
        self.channel_gate = ChannelGate(channels, hidden, w0)
        self.interaction = HyperInteraction(channels, size, hidden, w0)
        self.local = nn.ModuleList(LocalBranch(channels, k, hidden, w0) for k in LOCAL_SIZES)
        self.bottleneck = _pointwise((10 + before) * channels, out)
        self.norm = GroupStandardization(out)
        self.bias = nn.Parameter(torch.zeros(()))

    def branches(self, x: Maps) -> list[Maps]:
        kernel = self.slow()
        zw = x * kernel
        fast = F.instance_norm(self.rgu_slow(zw) + self.rgu_fast(x))
        mixed = F.instance_norm(self.mix(x))
        gated = F.instance_norm(self.channel_gate(x))
        far = hyper_zzw_global(kernel, x, fast)
        sources = (x, gated), (gated, x), (mixed, x), (x, mixed)
        near = [branch(*source) for branch, source in zip(self.local, sources, strict=True)]
        others = [hyper_zzw_global(kernel, x, mixed), hyper_zzw_global(kernel, x, gated)]
        return [far, *others, far.sigmoid() * far, self.interaction(far, x), *near, fast]

    def preactivation(self, x: Maps, before: Sequence[Maps] = ()) -> Maps:
        """The standardised features before the activation."""
        tiled = [each.repeat(1, x.shape[1] // each.shape[1], 1, 1) for each in before]
        return self.norm(self.bottleneck(torch.cat([*self.branches(x), *tiled], dim=1)))

    def forward(self, x: Maps, before: Sequence[Maps] = ()) -> Maps:
        return F.gelu(self.preactivation(x, before)) + self.bias


def slow_neural_loss(kernels: Sequence[Float[Tensor, "channels h w"]]) -> Float[Tensor, ""]:
    """The sum over pairs of blocks of the mean squared difference of their global kernels, the shallower one
    tiled to the channels of the deeper.

    Raises: ValueError for less than two kernels, or channels that do not divide.
    """
    if len(kernels) < 2:
        raise ValueError(f"expected the kernels of at least 2 blocks, got {len(kernels)}.")
    total = kernels[0].new_zeros(())
    for i, deep in enumerate(kernels):
        for shallow in kernels[:i]:
            if len(deep) % len(shallow):
                raise ValueError(
                    f"channels must divide those of deeper blocks, got {len(shallow)} and {len(deep)}."
                )
            total = total + (shallow.repeat(len(deep) // len(shallow), 1, 1) - deep).square().mean()
    return total


@part(
    "hyperzzw",
    "layers",
    title="HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction",
    paper="arXiv:2401.17948",
    number=125,
    replaces="mixer",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"hidden": Choice(8, 16, 32), "w0": Real(0.1, 10.0, log=True)},
    no_gradcheck="local kernels pass gradients through one of two summands",
)
class HyperZZW(nn.Module):
    """A block of slow and fast networks in the place of attention: every position meets every other, and all
    of its surroundings at four sizes, by kernels that are made and not stored.

    Equation: with W a `SlowNet`'s global kernel, Z.W = x W, and f = IN(RGU(x W) + RGU(x)), m = IN(V x),
    c = IN(channel-gated x): ten branches (x W) f, (x W) m, (x W) c, sigma(y) y of the first y, x gated by
    channel and position scores of y, four convolutions with local kernels of 3, 9, 5 and 7 pixels, and f;
    out = gelu(standardised B [branches]). Scores are (x W) x.

    Shapes: x (batch, height * width, dim), in reading order -> same, unitless. Grids that are not square are
    padded with zeros: (x W) f is a product of square matrices.

    Defaults: slow networks of 2 layers and 16 hidden units, for small maps; the authors have 64 for global
    and 32 for local kernels. w0 = 1, which they leave to a configuration that is not there.

    Raises: ValueError for sizes below 1, tokens that do not fill the grid, inputs of another width or dtype,
    or none.

    Source: Harvie Zhang, 2024, arXiv:2401.17948, section 3; the authors' `modules`, where factors of the
    renormalisation are not trained and evaluation depends on the batch.

    Not for: batches of one or two in training, as kernels depend on the batch; speed.
    """

    def __init__(self, dim: int, grid: tuple[int, int], hidden: int = 16, w0: float = 1.0) -> None:
        super().__init__()
        check_whole(dim=dim, height=grid[0], width=grid[1])
        if not w0 > 0:
            raise ValueError(f"w0 must be positive, got {w0}.")
        self.dim, self.grid = dim, grid
        side = max(grid)
        self.padding = (0, side - grid[1], 0, side - grid[0])
        self.block = SFNEBlock(dim, side, dim, hidden=hidden, w0=w0)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        height, width = self.grid
        if x.ndim != 3 or x.shape[1] != height * width:
            raise ValueError(f"x must have shape (batch, {height * width}, dim), got {tuple(x.shape)}.")
        maps = F.pad(check_tokens(x, self.dim).mT.unflatten(2, self.grid), self.padding)
        return self.block(check_maps(maps, self.dim))[:, :, :height, :width].flatten(2).mT


def grid_of(size: Sequence[int]) -> Float[Tensor, "positions d"]:
    """Coordinates from -1 to 1 along each axis, 0 where there is one position only."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _linear(inputs: int, outputs: int, bias: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    nn.init.constant_(layer.bias, bias)
    return layer


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.kaiming_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
