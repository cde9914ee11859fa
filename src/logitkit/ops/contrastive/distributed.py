"""One loss over the batches of all ranks, with what each rank computes: its own rows against all columns."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import no_second_derivatives


def sizes_of(x: Tensor, group: dist.ProcessGroup | None) -> tuple[int, list[int]]:
    """This rank's place in the group and every rank's number of rows; (0, [rows]) without a group."""
    if group is None:
        return 0, [len(x)]
    mine = torch.tensor([len(x)], device=x.device)
    sizes = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, mine, group=group)
    return dist.get_rank(group), [int(s) for s in sizes]


def gather(x: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in order of rank. Its gradient sums what all ranks found for this rank's."""
    return x if group is None else _Gather.apply(x, sizes, group)


def add_up(loss: Float[Tensor, ""], group: dist.ProcessGroup | None) -> Float[Tensor, ""]:
    """The sum over ranks. Its gradient is multiplied by their number, which an average of gradients over
    ranks, as DistributedDataParallel and FSDP take it, divides out."""
    return loss if group is None else _AddUp.apply(loss, group)


def count_up(count: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ranks of a number without gradient."""
    if group is not None:
        count = count.clone()
        dist.all_reduce(count, group=group)
    return count


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        # Equal sizes are what every backend can gather.
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        no_second_derivatives("contrastive losses")
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.split(ctx.sizes)[dist.get_rank(ctx.group)], None, None


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.ranks = dist.get_world_size(group)
        loss = loss.clone()
        dist.all_reduce(loss, group=group)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        no_second_derivatives("contrastive losses")
        return gradient * ctx.ranks, None
