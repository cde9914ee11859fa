"""GR-KAN: the feed-forward part of a transformer with rational activations that are learned."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.ops import group_rational
from logitkit.registry import Choice, part

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"identity": nn.Identity(), "gelu": F.gelu, "silu": F.silu}


def fit_rational(
    fn: Activation, lo: float = -8.0, hi: float = 8.0, m: int = 5, n: int = 4
) -> tuple[Float[Tensor, " m1"], Float[Tensor, " n"]]:
    """Coefficients a and b, in float64, of the rational function that is nearest to `fn` on [lo, hi] in least
    squares.

    The odd ones of b are 0 and the even ones are not negative, so that the absolute value never acts and the
    fit goes on smoothly outside the interval. By iterated linear least squares (Sanathanan and Koerner): the
    residual P - fn Q is divided by the Q before.

    Raises: ValueError for an empty interval, degrees below 1, or a `fn` that is not finite on it.
    """
    if not lo < hi:
        raise ValueError(f"lo must be below hi, got {lo} and {hi}.")
    check_whole(m=m, n=n)
    scale = max(abs(lo), abs(hi))
    u = ((lo + hi) + (hi - lo) * np.cos(np.pi * (np.arange(1000) + 0.5) / 1000)) / 2 / scale
    y = fn(torch.from_numpy(scale * u)).detach().numpy()
    if not np.isfinite(y).all():
        raise ValueError(f"fn is not finite everywhere on [{lo}, {hi}].")
    even = np.arange(2, n + 1, 2)
    numerator, inner = u[:, None] ** np.arange(m + 1), u[:, None] ** even
    low = np.concatenate([np.full(m + 1, -np.inf), np.zeros(len(even))])
    q = np.ones_like(u)
    for _ in range(50):
        columns = np.concatenate([numerator, -y[:, None] * inner], axis=1) / q[:, None]
        found = lsq_linear(columns, y / q, (low, np.inf)).x
        q = 1 + inner @ found[m + 1 :]
    a, b = found[: m + 1] / scale ** np.arange(m + 1), np.zeros(n)
    b[even - 1] = found[m + 1 :] / scale**even
    return torch.from_numpy(a), torch.from_numpy(b)


def gain(fn: Activation) -> float:
    """alpha = Var[x] / E[fn(x)^2] for x ~ N(0, 1), by quadrature: a layer W fn(x) keeps the variance with
    W ~ N(0, alpha / fan_in)."""
    x, weight = hermegauss(100)
    squares = fn(torch.from_numpy(x)).numpy() ** 2
    return math.sqrt(2 * math.pi) / float(weight @ squares)


class GroupRational(nn.Module):
    """`group_rational` with learned coefficients: m + 1 shared by all channels, and n for each of `groups`
    groups of neighbouring channels. It starts as the identity, GELU or SiLU; n >= 2 and m >= 1.

    Shapes: x with `channels` along `axis` (-1 for tokens, 1 for maps) -> same, unitless.
    Raises: ValueError for groups that do not divide the channels, an unknown `init`, inputs of another width
    or dtype, or none.
    """

    def __init__(
        self, channels: int, groups: int = 8, init: str = "identity", m: int = 5, n: int = 4, axis: int = -1
    ) -> None:
        super().__init__()
        check_whole(channels=channels, groups=groups, m=m, n=n)
        if channels % groups:
            raise ValueError(f"groups must divide the channels, got {groups} groups of {channels} channels.")
        if init not in ACTIVATIONS:
            raise ValueError(f"init must be one of {tuple(ACTIVATIONS)}, got {init!r}.")
        self.channels, self.axis = channels, axis
        self.a, self.b = nn.Parameter(torch.empty(m + 1)), nn.Parameter(torch.empty(groups, n))
        self.set(*_start(init, m, n))

    @torch.no_grad()
    def set(self, a: Float[Tensor, " m1"], b: Float[Tensor, " n"]) -> None:
        """Start from these coefficients, b in every group."""
        self.a.copy_(a)
        self.b.copy_(b.expand_as(self.b))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_tokens(x.movedim(self.axis, -1), self.channels)
        return group_rational(x, self.a, self.b, self.axis)


@functools.cache
def _start(init: str, m: int, n: int) -> tuple[Tensor, Tensor]:
    if init == "identity":
        return torch.eye(m + 1, dtype=torch.float64)[1], torch.zeros(n, dtype=torch.float64)
    return fit_rational(ACTIVATIONS[init], m=m, n=n)


@part(
    "kat",
    "layers",
    title="Kolmogorov-Arnold Transformer",
    paper="arXiv:2409.10594",
    number=135,
    replaces="mlp",
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
    search_space={"groups": Choice(1, 2, 4, 8), "init": Choice("gelu", "silu")},
)
class GRKAN(nn.Module):
    """GR-KAN: the feed-forward part of the Kolmogorov-Arnold transformer, for when the activation may be
    learned at the price of a few numbers per layer; a trained transformer converts (`convert_mlp`).

    Equation: y = W_2 F_2(W_1 F_1(x) + c_1) + c_2 with F(x) = P(x) / Q(x), P = a_0 + a_1 x + .. + a_5 x^5,
    Q = 1 + |b_1 x + .. + b_4 x^4|; a is shared by all channels and b by those of one of `groups` groups of
    neighbours.

    Shapes: x (..., dim) -> (..., out), unitless; out = dim unless given.

    Defaults: 8 groups, degrees 5 and 4, F_1 the identity and F_2 fitted to GELU, as in the paper.
    W ~ N(0, alpha / fan_in), alpha = 1 after the identity and 1 / E[F_2(z)^2] = 2.35 after GELU. Fits are on
    [-8, 8], the paper's on [-3, 3], where the best denominator has a zero just outside.

    Raises: ValueError for groups that divide not both widths, an unknown `init`, inputs of another width or
    dtype, or none.

    Source: Yang and Wang, ICLR 2025, arXiv:2409.10594, equations 12 to 17. The authors' kernels have
    Q = 1 + sum |b_k| |x|^k instead, which does not fit the GELU that their coefficients are for.

    Not for: weight decay on a and b, which pulls an activation towards 0; give them a group of the optimiser
    without it.
    """

    def __init__(
        self, dim: int, hidden: int, out: int | None = None, groups: int = 8, init: str = "gelu"
    ) -> None:
        super().__init__()
        check_whole(dim=dim, hidden=hidden, out=dim if out is None else out)
        self.act1 = GroupRational(dim, groups)
        self.fc1 = nn.Linear(dim, hidden)
        self.act2 = GroupRational(hidden, groups, init)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)
        for layer, alpha in ((self.fc1, 1.0), (self.fc2, gain(ACTIVATIONS[init]))):
            nn.init.normal_(layer.weight, std=math.sqrt(alpha / layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        return self.fc2(self.act2(self.fc1(self.act1(x))))


def convert_mlp(mlp: nn.Sequential, groups: int = 8, lo: float = -8.0, hi: float = 8.0) -> GRKAN:
    """The GR-KAN that computes what Linear, activation, Linear does, but for the error of the activation's
    fit on [lo, hi]. Weights are copied.

    Raises: ValueError for another sequence of modules, or groups that do not divide both widths.
    """
    layers = [layer for layer in mlp if not isinstance(layer, nn.Dropout)]
    match layers:
        case [nn.Linear() as fc1, activation, nn.Linear() as fc2] if not isinstance(activation, nn.Linear):
            made = GRKAN(fc1.in_features, fc1.out_features, fc2.out_features, groups).to(fc1.weight)
        case _:
            names = [type(layer).__name__ for layer in layers]
            raise ValueError(f"mlp must be Linear, activation, Linear, got {names}, {len(names)} layers.")
    made.act2.set(*fit_rational(activation, lo, hi))
    with torch.no_grad():
        for new, old in ((made.fc1, fc1), (made.fc2, fc2)):
            new.weight.copy_(old.weight)
            new.bias.copy_(0 if old.bias is None else old.bias)
    return made
