"""The row statistics from the whole matrix of logits, in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.linear_loss.layer import Layer


def logits(layer: Layer) -> Float[Tensor, "batch classes"]:
    """softcap(features weight^T + bias), in float32 for half precision."""
    z = F.linear(layer.features, layer.weight, layer.bias)
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return z if layer.softcap is None else layer.softcap * torch.tanh(z / layer.softcap)


def statistics(
    layer: Layer,
    target: Int[Tensor, " batch"],
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, " batch"], ...]:
    """(rest, at, mixed) of each row, in float64; see `logitkit.ops.linear_loss.skeleton.statistics`. Nothing
    is filtered."""
    z = logits(layer)
    inside = (target >= 0) & (target < z.shape[1])
    y = target.where(inside, target.new_zeros(()))[:, None]
    hidden = torch.zeros_like(z, dtype=torch.bool).scatter(1, y, inside[:, None])
    others = (scale * z).masked_fill(hidden, -torch.inf)
    # Near the largest logit float32 has digits that it has not far from 0.
    top = others.detach().amax(dim=1, keepdim=True)
    rest = torch.logsumexp(others - top, dim=1).double() + top[:, 0]
    at = z.gather(1, y)[:, 0].where(inside, z.new_zeros(())).double()
    mixed = torch.zeros_like(at)
    if mix is not None:
        mixed = (z @ mix.to(z)).double()
    if teacher is None:
        return rest, at, mixed
    with torch.no_grad():
        t = logits(teacher).to(z)
        known = statistics(teacher, target, scale)[:2]
        q = torch.softmax((scale * t).masked_fill(hidden, -torch.inf), dim=1)
    return rest, at, (q * (z - t)).sum(dim=1).double(), *known


def total(
    loss: Callable[..., Float[Tensor, " rows"]],
    layer: Layer,
    target: Int[Tensor, " batch"],
    constants: tuple[Float[Tensor, " batch"], ...],
    rows: Int[Tensor, " kept"] | None = None,
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Sum of loss(rest, at, mixed, *constants) over `rows`, and the statistics, detached (0 elsewhere)."""
    if rows is None:
        found = statistics(layer, target, scale, mix, teacher)
        value = loss(*found, *constants).sum()
        rest, at, mixed = (s.detach() for s in found[:3])
        return value, rest, at, mixed
    few = None if teacher is None else teacher.rows(rows)
    found = statistics(layer.rows(rows), target[rows], scale, mix, few)
    value = loss(*found, *(c[rows] for c in constants)).sum()
    rest, at, mixed = (s.new_zeros(target.shape).index_copy(0, rows, s.detach()) for s in found[:3])
    return value, rest, at, mixed
