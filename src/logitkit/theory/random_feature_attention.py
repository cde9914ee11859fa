"""Random-feature attention: one attention layer with frozen random weights, fitted in closed form."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops import check_numbers
from logitkit.ops.fitted import Fitted
from logitkit.registry import Real, Whole, part


def attention_features(
    x: Float[Tensor, "rows tokens dim"], weight: Float[Tensor, "features dim dim"]
) -> Float[Tensor, "rows features dim"]:
    """phi_m = mean over keys i of relu(x_0^T W_m x_i) x_i; token 0 is the query, the rest are keys."""
    query, keys = x[:, 0], x[:, 1:]
    scores = torch.einsum("nd,mde,nke->nmk", query, weight, keys).relu()
    return scores @ keys / keys.shape[1]


def attention_kernel(
    a: Float[Tensor, "n tokens dim"], b: Float[Tensor, "m tokens dim"]
) -> Float[Tensor, "n m"]:
    """E_W <phi(a), phi(b)> over Gaussian W: what infinitely many features with bias 0 amount to.

    K = mean_ij k(x_0 x_i^T, x'_0 x'_j^T) <x_i, x'_j>, with the arc-cosine kernel of degree 1 of matrices u
    and v at the angle t, k(u, v) = |u| |v| (sin t + (pi - t) cos t) / (2 pi).
    """
    inner = torch.einsum("nid,mjd->nmij", a[:, 1:], b[:, 1:])
    size = _sizes(a)[:, None, :, None] * _sizes(b)[:, None]
    cosine = ((a[:, 0] @ b[:, 0].mT)[..., None, None] * inner / size.clamp(min=1e-30)).clamp(-1, 1)
    angle = cosine.arccos()
    k = size * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    return (k * inner).mean(dim=(2, 3))


class RandomFeatureRegression(Fitted):
    """Ridge regression on random features, which a subclass draws and computes. Fitted in float64."""

    def __init__(self, features: int, l2: float, seed: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}.")
        if not l2 >= 0:
            raise ValueError(f"l2 must not be negative, got {l2}.")
        self.count, self.l2, self.seed = features, l2, seed
        self.weight: Tensor
        self.coefficients: Tensor
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("coefficients", torch.zeros(0))

    def draw(self, tokens: int, dim: int, generator: torch.Generator) -> Tensor:
        """Random weights for rows of so many tokens."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows coefficients"]:
        """The features of rows, of which the prediction is a linear function."""
        raise NotImplementedError

    def fit(self, x: Float[Tensor, "rows tokens dim"], y: Float[Tensor, " rows"]) -> RandomFeatureRegression:
        """Draw the weights and solve for the coefficients; l2 = 0 takes those of the least norm. Returns
        self."""
        _check(x)
        if y.shape != x.shape[:1] or not y.is_floating_point():
            raise ValueError(f"y must be {len(x)} real numbers, got {y.dtype} of shape {tuple(y.shape)}.")
        check_numbers(y, "y")
        generator = torch.Generator().manual_seed(self.seed)
        self.weight = self.draw(x.shape[1], x.shape[2], generator).to(x)
        phi, target = self.features(x).double(), y.double()
        if self.l2 == 0:
            solved = torch.linalg.pinv(phi) @ target
        elif phi.shape[1] <= len(phi):
            ridge = self.l2 * torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)
            solved = torch.linalg.solve(phi.mT @ phi + ridge, phi.mT @ target)
        else:
            ridge = self.l2 * torch.eye(len(phi), dtype=phi.dtype, device=phi.device)
            solved = phi.mT @ torch.linalg.solve(phi @ phi.mT + ridge, target)
        self.coefficients = solved.to(x)
        return self

    def predict(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, " rows"]:
        """The fitted function of rows."""
        _check(x)
        if not self.coefficients.numel():
            raise ValueError(f"{type(self).__name__} predicts once it is fitted, got {len(x)} rows before.")
        return self.features(x) @ self.coefficients.to(x.dtype)


@part(
    "random_feature_attention",
    "theory",
    title="What can a Single Attention Layer Learn? A Study Through the Random Features Lens",
    paper="arXiv:2307.11353",
    number=51,
    aliases=("rf_attention",),
    tasks=("sequence",),
    search_space={
        "bias": Real(0.0, 4.0),
        "l2": Real(1e-6, 1e-1, log=True),
        "features": Whole(64, 1024, log=True),
    },
)
class RandomFeatureAttention(RandomFeatureRegression):
    """One attention layer with random queries and keys, of which the values are fitted in closed form: what
    a single layer can learn, in seconds.

    Equation: f(x_0, x_1..x_N) = sum_m 1/N sum_i relu(x_0^T W_m x_i) <v_m, x_i>, W_m = bias I + G_m with
    entries N(0, 1), frozen; v minimises |f - y|^2 + l2 |v|^2.

    Shapes: x (rows, tokens, dim), the query first and then the keys, y (rows,) -> predictions (rows,) in the
    units of y. The `features` M = 256 have M dim coefficients.

    Defaults: bias 0, random-feature attention; the paper's biased version, whose scores rise with <x_0, x_i>,
    has bias > 0 (2 is a good start). l2 = 1e-3; 0 is the least-norm solution.

    Raises: ValueError for rows of another shape or dtype, fewer than 2 tokens, other settings than numbers in
    their range, an empty batch or NaN.

    Source: Fu, Wang, Mei, Bai, NeurIPS 2023, arXiv:2307.11353, section 3 (RFA) and 4 (biased RFA).

    Not for: functions of the order of the keys, which it does not see; inputs of very different lengths: the
    paper's lie on a sphere.
    """

    def __init__(self, features: int = 256, bias: float = 0.0, l2: float = 1e-3, seed: int = 0) -> None:
        super().__init__(features, l2, seed)
        self.bias = bias

    def draw(self, tokens: int, dim: int, generator: torch.Generator) -> Tensor:
        gaussian = torch.randn(self.count, dim, dim, generator=generator, dtype=torch.float64)
        return gaussian + self.bias * torch.eye(dim, dtype=torch.float64)

    def features(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows coefficients"]:
        if x.shape[-1] != self.weight.shape[-1]:
            raise ValueError(f"x must have {self.weight.shape[-1]} numbers per token, got {x.shape[-1]}.")
        return attention_features(x, self.weight.to(x.dtype)).flatten(1)


class RandomFeatureMLP(RandomFeatureRegression):
    """The same on all tokens side by side, relu(W vec(x)): what random-feature attention is compared with."""

    def __init__(self, features: int = 2048, l2: float = 1e-3, seed: int = 0) -> None:
        super().__init__(features, l2, seed)

    def draw(self, tokens: int, dim: int, generator: torch.Generator) -> Tensor:
        return torch.randn(self.count, tokens * dim, generator=generator, dtype=torch.float64)

    def features(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows coefficients"]:
        flat = x.flatten(1)
        if flat.shape[1] != self.weight.shape[1]:
            raise ValueError(f"x must have {self.weight.shape[1]} numbers per row, got {flat.shape[1]}.")
        return (flat @ self.weight.to(x.dtype).mT).relu()


def _sizes(x: Tensor) -> Float[Tensor, "rows keys"]:
    """|x_0 x_i^T| of each key."""
    return x[:, :1].norm(dim=-1) * x[:, 1:].norm(dim=-1)


def _check(x: Tensor) -> None:
    if x.ndim != 3 or x.shape[1] < 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (rows, tokens, dim), at least 2 tokens, got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}.")
    check_numbers(x, "x")
