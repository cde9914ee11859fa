"""Scalable neural network kernels: layers in which inputs and weights meet only in a dot product."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from logitkit.layers.base import check_tokens, check_whole
from logitkit.ops import check_features
from logitkit.registry import Choice, part

Spectrum = Callable[[int], tuple[Tensor, Tensor]]


def relu_features(
    x: Float[Tensor, "*batch dim"], projection: Float[Tensor, "m dim"], c: float = 0.0
) -> Float[Tensor, "*batch m"]:
    """max(G x, c) / sqrt(m). For Gaussian rows of G and c = 0, the mean of Phi(w) . Phi(x) is the arc-cosine
    kernel |x| |w| (sin t + (pi - t) cos t) / (2 pi), t the angle between x and w."""
    return (x @ projection.T).clamp(min=c) / math.sqrt(len(projection))


def exp_features(
    x: Float[Tensor, "*batch dim"], projection: Float[Tensor, "m dim"], xi: Float[Tensor, " m"]
) -> Complex[Tensor, "*batch m"]:
    """exp(sqrt(a) G x - a |x|^2 / 2) / sqrt(m) with a = 2 pi i xi: for Gaussian G the mean of the product of
    these features of x and w (without conjugation) is the mean over xi of exp(2 pi i xi w.x)."""
    a = 2j * math.pi * xi.to(_complex(x))
    along = (x @ projection.T) * a.sqrt() - x.square().sum(-1, keepdim=True) * a / 2
    return along.exp() / math.sqrt(len(projection))


def sine(m: int) -> tuple[Tensor, Tensor]:
    """Frequencies +-1 / (2 pi) of sin, alternating, and F / p."""
    sign = 1.0 - 2.0 * (torch.arange(m) % 2)
    return sign / (2 * math.pi), -1j * sign


def cosine(m: int) -> tuple[Tensor, Tensor]:
    """Frequencies +-1 / (2 pi) of cos, alternating, and F / p."""
    xi, _ = sine(m)
    return xi, torch.ones(m)


def gaussian(m: int) -> tuple[Tensor, Tensor]:
    """Frequencies of exp(-z^2 / 2), drawn from its transform, and F / p."""
    return torch.randn(m) / (2 * math.pi), torch.ones(m)


SPECTRA: dict[str, Spectrum] = {"cos": cosine, "sin": sine, "gaussian": gaussian}


def gaussian_rows(m: int, dim: int, orthogonal: bool = False) -> Float[Tensor, "m dim"]:
    """m Gaussian vectors; with `orthogonal`, those of each block of `dim` are at right angles."""
    if not orthogonal:
        return torch.randn(m, dim)
    blocks = [nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(-(-m // dim))]
    return torch.cat(blocks)[:m] * torch.randn(m, dim).norm(dim=1, keepdim=True)


class _SNNK(nn.Module):
    """y = Psi . Phi(x) + bias; subclasses have `psi`, which is trained, and `features`, which are not."""

    psi: nn.Parameter
    projection: Tensor

    def __init__(self, in_features: int, out_features: int, features: int, orthogonal: bool) -> None:
        super().__init__()
        check_whole(in_features=in_features, out_features=out_features, features=features)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("projection", gaussian_rows(features, in_features, orthogonal))
        self.bias: nn.Parameter | None = None

    def features(self, x: Tensor) -> Tensor:
        """Phi(x), real numbers that Psi's rows are multiplied with."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        y = self.features(check_tokens(x, self.in_features)) @ self.psi.T
        return y if self.bias is None else y + self.bias


@part(
    "snnk",
    "layers",
    title="Scalable Neural Network Kernels",
    paper="arXiv:2310.13225",
    number=48,
    replaces="linear",
    search_space={"features": Choice(32, 64, 128, 256), "orthogonal": Choice(False, True)},
)
class ReLUSNNK(_SNNK):
    """A linear layer and its activation as one product of features: the size of what is trained is chosen
    apart from the input's, and a linear layer after it folds in (`bundle`).

    Equation: y_j = Psi_j . Phi(x), Phi(x) = max(G x, c) / sqrt(m), G of m Gaussian rows that stay as drawn.
    Psi starts as Phi(w_j), w_j the rows of a usual linear layer, so that y_j estimates the arc-cosine kernel
    of w_j and x.

    Shapes: x (..., in_features) -> (..., out_features), unitless; Psi is (out_features, m).

    Defaults: m = `features` = 64, c = 0, independent rows of G; `orthogonal` makes blocks of them orthogonal.
    No bias, as in the paper; `bundle` brings one.

    Raises: ValueError for sizes below 1, inputs of another width or dtype, or none.

    Source: Sehanobish et al., ICLR 2024, arXiv:2310.13225, sections 3 and 4; the authors' `nnk.py`. For
    other activations there is `URFSNNK`; the authors' features of sequences leave out the half of |x|^2 / 2.

    Not for: an approximation of relu(W x), which this is not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        features: int = 64,
        c: float = 0.0,
        orthogonal: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, features, orthogonal)
        self.c = c
        weight = nn.Linear(in_features, out_features).weight.detach()
        self.psi = nn.Parameter(self.features(weight))

    def features(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch m"]:
        return relu_features(x, self.projection, self.c)


class URFSNNK(_SNNK):
    """y_j ~ f(w_j . x + b_j) as Psi_j . Phi(x) for an f with a Fourier transform F, by universal random
    features: f(z) is the mean of coefficient * exp(2 pi i xi z).

    spectrum: "cos", "sin", "gaussian" (f = exp(-z^2 / 2)), or a function of m that returns m frequencies xi
    drawn from a density p, and as many coefficients F(xi) / p(xi).

    Shapes: x (..., in_features) -> (..., out_features); real parts of m complex products, so that Psi is
    (out_features, 2m). The variance grows with exp(|x|^2): scale x to about unit length.
    Raises: ValueError for an unknown spectrum, sizes below 1, inputs of another width or dtype, or none.
    """

    xi: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        features: int = 64,
        spectrum: str | Spectrum = "cos",
        orthogonal: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, features, orthogonal)
        if isinstance(spectrum, str):
            if spectrum not in SPECTRA:
                raise ValueError(f"spectrum must be one of {tuple(SPECTRA)} or a function, got {spectrum!r}.")
            spectrum = SPECTRA[spectrum]
        xi, coefficient = spectrum(features)
        self.register_buffer("xi", xi)
        start = nn.Linear(in_features, out_features)
        phase = torch.exp(2j * math.pi * xi * start.bias.detach()[:, None]) * coefficient
        psi = phase * exp_features(start.weight.detach(), self.projection, xi)
        self.psi = nn.Parameter(torch.cat([psi.real, -psi.imag], dim=1))

    def features(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch m2"]:
        half = x.dtype in (torch.float16, torch.bfloat16)  # there are no complex numbers of half precision
        x, projection = (x.float(), self.projection.float()) if half else (x, self.projection)
        phi = exp_features(x, projection, self.xi)
        return torch.cat([phi.real, phi.imag], dim=-1).to(self.psi.dtype)


class SNNKAdapter(nn.Module):
    """x + ReLUSNNK(x) whose Psi starts at 0: an adapter that does nothing until it is trained.

    Shapes: x (..., dim) -> same.
    """

    def __init__(self, dim: int, features: int = 64) -> None:
        super().__init__()
        self.layer = ReLUSNNK(dim, dim, features)
        nn.init.zeros_(self.layer.psi)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x + self.layer(x)


@torch.no_grad()
def bundle(net: nn.Sequential) -> nn.Sequential:
    """The same function with every linear layer that follows a kernel layer folded into its Psi. The net
    stays as it is; layers that are not folded are shared with it.

    Raises: ValueError where there is nothing to fold.
    """
    layers: list[nn.Module] = []
    for layer in net:
        if isinstance(layer, nn.Linear) and layers and isinstance(layers[-1], _SNNK):
            layers[-1] = _folded(layers[-1], layer)
        else:
            layers.append(layer)
    if len(layers) == len(net):
        raise ValueError(f"no linear layer follows a kernel layer among the {len(net)} of net.")
    return nn.Sequential(*layers)


def _folded(kernel: _SNNK, linear: nn.Linear) -> _SNNK:
    """linear(kernel(x)) as one kernel layer."""
    made = copy.deepcopy(kernel)
    made.psi = nn.Parameter(linear.weight @ kernel.psi)
    made.out_features = linear.out_features
    zero = linear.weight.new_zeros(linear.out_features)
    before = zero if kernel.bias is None else linear.weight @ kernel.bias
    made.bias = nn.Parameter(before if linear.bias is None else before + linear.bias)
    return made


class FullyBundled(nn.Module):
    """A whole network in one matrix, trained in closed form: Psi = Y^T Phi (Phi^T Phi + l2 1)^-1 minimises
    |Y - Phi Psi^T|^2 + l2 |Psi|^2, Phi the `relu_features` of the examples.

    Shapes: fit(x (n, in), y (n, out)) -> self; x (batch, in) -> (batch, out).
    Raises: ValueError for a negative l2, inputs of another shape or dtype, or a call before `fit`.
    """

    projection: Tensor

    def __init__(
        self, in_features: int, features: int = 256, l2: float = 1e-3, orthogonal: bool = False
    ) -> None:
        super().__init__()
        check_whole(in_features=in_features, features=features)
        if not l2 >= 0:
            raise ValueError(f"l2 must not be negative, got {l2}.")
        self.in_features, self.l2 = in_features, l2
        self.register_buffer("projection", gaussian_rows(features, in_features, orthogonal))
        self.psi: nn.Parameter | None = None

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "n in"], y: Float[Tensor, "n out"]) -> FullyBundled:
        if y.ndim != 2 or len(y) != len(x):
            raise ValueError(f"y must have shape ({len(x)}, out), got {tuple(y.shape)}.")
        phi = relu_features(check_features(x, self.in_features), self.projection)
        m = phi.shape[1]
        # as least squares on stacked rows, which does not square the condition number
        rows = torch.cat([phi, math.sqrt(self.l2) * torch.eye(m, dtype=phi.dtype, device=phi.device)])
        targets = torch.cat([y.to(phi), phi.new_zeros(m, y.shape[1])])
        self.psi = nn.Parameter(torch.linalg.lstsq(rows, targets).solution.T.contiguous())
        return self

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        if self.psi is None:
            raise ValueError(f"call fit first: there is no Psi of {len(self.projection)} features.")
        return relu_features(check_features(x, self.in_features), self.projection) @ self.psi.T


def _complex(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.dtype == torch.float64 else torch.complex64
