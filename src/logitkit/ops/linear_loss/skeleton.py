"""What every loss on top of a linear layer shares: three numbers per row, and how to differentiate them.

A loss of this family is a function of a row's logits z through

    rest  = log sum_{k != y} exp(scale z_k)       the log-sum-exp of the other classes
    at    = z_y                                   the logit of the label
    mixed = sum_k v_k z_k                         a mean of the logits, where one is asked for

and is written as a function of (rest, at, mixed), differentiated by autograd on vectors with one number per
row. The matrix of logits appears in `statistics` and `total` only, one tile at a time. Leaving the label out
of the log-sum-exp keeps the digits of 1 - p_y, which log-sum-exp(z) - z_y loses when p_y is near 1.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.checks import values_visible
from logitkit.ops.dispatch import implementation, untraced
from logitkit.ops.linear_loss import reference
from logitkit.ops.linear_loss.distributed import Shard
from logitkit.ops.linear_loss.layer import Layer

# Below this many bytes of logits, plain torch is faster.
SMALL = 4 * 2**20


def _kernel(layer: Layer, teacher: Layer | None) -> ModuleType:
    cpu: bool | str = layer.features.shape[0] * layer.weight.shape[0] * 4 > SMALL
    triton = cpu if teacher is None else "it takes no teacher"
    if any(x is not None and x.features.dtype == torch.float64 for x in (layer, teacher)):
        cpu = triton = "it computes in float32, and these are float64"
    return implementation(reference, layer.features, cpu=cpu, triton=triton)


@untraced
def statistics(
    layer: Layer,
    target: Int[Tensor, " batch"],
    *,
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
    shard: Shard | None = None,
) -> tuple[Float[Tensor, " batch"], ...]:
    """(rest, at, mixed) of each row in float64, differentiable in the layer: one product forward, three
    backward.

    target: labels; a label outside [0, classes) is no class, so that `rest` is over all of them and `at` 0.
    mix: v, the same for all rows. teacher: v_k = softmax over k != y of scale t_k, t the teacher's logits,
    and mixed = sum_k v_k (z_k - t_k); the teacher's own (rest, at) follow. Neither gets a gradient.
    shard: layer and mix are this rank's part of the vocabulary; the statistics are those of the whole rows.
    """
    kernel = _kernel(layer, teacher)
    if shard is not None:
        target = shard.labels(target)
    with torch.autocast(layer.features.device.type, enabled=False):
        found = kernel.statistics(layer, target, scale, mix, teacher, filter_eps)
    return found if shard is None else shard.merge(*found)


@untraced
def total(
    loss: Callable[..., Float[Tensor, " rows"]],
    layer: Layer,
    target: Int[Tensor, " batch"],
    constants: tuple[Float[Tensor, " batch"], ...],
    *,
    rows: Int[Tensor, " kept"] | None = None,
    scale: float = 1.0,
    mix: Float[Tensor, " classes"] | None = None,
    teacher: Layer | None = None,
    filter_eps: float | str | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Sum over `rows` (all by default) of loss(*statistics, *constants), and (rest, at, mixed), detached.

    `constants` hold one number per row each and get no gradient. As what arrives from above is one number,
    gradients can be made in the forward, from the logits while they are there: three products in all.
    """
    kernel = _kernel(layer, teacher)
    with torch.autocast(layer.features.device.type, enabled=False):
        return kernel.total(loss, layer, target, constants, rows, scale, mix, teacher, filter_eps)


def softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(x)) to the last digit of float64."""
    return F.softplus(x, threshold=40.0)


def reduced(
    loss: Callable[..., Float[Tensor, " rows"]],
    layer: Layer,
    target: Int[Tensor, " batch"],
    counts: Float[Tensor, " batch"],
    constants: tuple[Float[Tensor, " batch"], ...],
    reduction: str,
    divisor: Float[Tensor, ""],
    *,
    attached: bool = False,
    shard: Shard | None = None,
    **options: Any,
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """The loss reduced, each row counting `counts` times and "mean" dividing by `divisor`; and the
    log-sum-exp of each row that counts, with its gradient if `attached`. In float64."""
    scale = options.get("scale", 1.0)
    # A chunk of whole rows would have to wait for the other ranks before it can be differentiated.
    if reduction == "none" or attached or counts.requires_grad or shard is not None:
        rest, at, *others = statistics(layer, target, shard=shard, **options)
        each = loss(rest, at, *others, *constants)
        return reduced_rows(each, counts, reduction, divisor), torch.logaddexp(rest, scale * at)
    share = counts / divisor.where(divisor != 0, divisor.new_ones(())) if reduction == "mean" else counts
    rows = None
    if values_visible(counts) and not bool(counts.all()):
        rows = counts.nonzero()[:, 0]
    value, rest, at, _ = total(
        lambda *a: _weighted(loss(*a[:-1]), a[-1]), layer, target, (*constants, share), rows=rows, **options
    )
    return value, torch.logaddexp(rest, scale * at)


def reduced_rows(
    each: Float[Tensor, " batch"], counts: Float[Tensor, " batch"], reduction: str, divisor: Float[Tensor, ""]
) -> Tensor:
    """Losses per row, weighted and reduced; 0 for a mean over nothing."""
    each = _weighted(each, counts)
    if reduction == "none":
        return each
    return (
        each.sum() if reduction == "sum" else each.sum() / divisor.where(divisor != 0, divisor.new_ones(()))
    )


def _weighted(each: Tensor, counts: Tensor) -> Tensor:
    # What counts nothing may be infinite.
    return each.where(counts != 0, each.new_zeros(())) * counts
