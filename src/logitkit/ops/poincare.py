"""The Poincare ball of curvature -c: hyperbolic space, in which volume grows exponentially with distance.

Points lie within radius 1 / sqrt(c). c = 0 is Euclidean space with all distances doubled, the limit of every
formula here.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Points are kept this much inside the ball, relative to its radius.
MARGIN = 1e-3


def project(x: Float[Tensor, "*batch d"], c: float) -> Float[Tensor, "*batch d"]:
    """x, moved back to radius (1 - 0.001) / sqrt(c) if it lies beyond."""
    if c == 0:
        return x
    radius = (1 - MARGIN) / math.sqrt(c)
    norm = _norm(x)
    return torch.where(norm > radius, x / norm.clamp(min=radius) * radius, x)


def mobius_add(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"], c: float) -> Tensor:
    """x (+) y = ((1 + 2c<x, y> + c|y|^2) x + (1 - c|x|^2) y) / (1 + 2c<x, y> + c^2 |x|^2 |y|^2)."""
    xy = (x * y).sum(dim=-1, keepdim=True)
    xx = x.square().sum(dim=-1, keepdim=True)
    yy = y.square().sum(dim=-1, keepdim=True)
    below = 1 + 2 * c * xy + c**2 * xx * yy
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / below.clamp(min=torch.finfo(x.dtype).tiny)


def conformal(x: Float[Tensor, "*batch d"], c: float) -> Float[Tensor, "*batch 1"]:
    """lambda_x = 2 / (1 - c|x|^2): how much longer a step at x is than it looks."""
    return 2 / (1 - c * x.square().sum(dim=-1, keepdim=True))


def expmap(x: Float[Tensor, "*batch d"], u: Float[Tensor, "*batch d"], c: float) -> Tensor:
    """Where the geodesic from x with velocity u is after unit time:
    x (+) tanh(sqrt(c) lambda_x |u| / 2) u / (sqrt(c) |u|)."""
    if c == 0:
        return x + u
    root, norm = math.sqrt(c), _norm(u)
    tiny = torch.finfo(u.dtype).eps
    # tanh(a n) / n has the limit a at 0, where dividing would lose it.
    rate = root * conformal(x, c) / 2
    stretch = torch.where(norm > tiny, torch.tanh(rate * norm) / norm.clamp(min=tiny), rate)
    return mobius_add(x, stretch * u / root, c)


def dist(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"], c: float) -> Float[Tensor, "*batch"]:
    """2 / sqrt(c) artanh(sqrt(c) |(-x) (+) y|), and 2 |x - y| for c = 0."""
    apart = _norm(mobius_add(-x, y, c))[..., 0]
    if c == 0:
        return 2 * apart
    inside = (math.sqrt(c) * apart).clamp(max=1 - torch.finfo(x.dtype).eps)
    return 2 / math.sqrt(c) * torch.atanh(inside)


def hyperplane_logits(
    x: Float[Tensor, "batch d"], a: Float[Tensor, "classes d"], p: Float[Tensor, "classes d"], c: float
) -> Float[Tensor, "batch classes"]:
    """Scores of hyperbolic multinomial regression: signed, scaled distances to hyperplanes through p_k.

    With z = (-p_k) (+) x: lambda_{p_k} |a_k| / sqrt(c) asinh(2 sqrt(c) <z, a_k> / ((1 - c|z|^2) |a_k|)), and
    4 <a_k, x - p_k> for c = 0. (Ganea, Becigneul, Hofmann, arXiv:1805.09112, equation 25.)
    """
    z = mobius_add(-p, x[:, None], c)
    along = (z * a).sum(dim=-1)
    if c == 0:
        return 4 * along
    root, length = math.sqrt(c), _norm(a)[:, 0].clamp(min=torch.finfo(a.dtype).tiny)
    inside = 2 * root * along / ((1 - c * z.square().sum(dim=-1)) * length)
    return conformal(p, c)[:, 0] * length / root * torch.asinh(inside)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
