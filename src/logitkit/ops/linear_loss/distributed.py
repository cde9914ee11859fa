"""A vocabulary that is spread over the ranks of a process group: each has the rows of some of the words.

The statistics of a row merge over shards: `rest` by a log-sum-exp, `at` and `mixed` by sums, as a label that
a shard does not have is no class of it. So ranks exchange numbers per token, and in the backward the
gradient of the features, but nothing as large as the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.dispatch import untraced


@dataclass(frozen=True)
class Shard:
    """This rank's part of the vocabulary: its first word, and how many words all ranks have."""

    group: dist.ProcessGroup
    first: int
    classes: int

    def labels(self, target: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Labels as this rank numbers them; outside [0, words here) for the other ranks' words."""
        return target - self.first

    @untraced
    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks of a tensor without gradient."""
        x = x.clone()
        dist.all_reduce(x, group=self.group)
        return x

    def merge(self, rest: Tensor, at: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
        """Statistics of the whole rows from those of the shards."""
        return _Merge.apply(rest, at, mixed, self.group)


@untraced
def shard_of(features: Tensor, weight: Tensor, group: dist.ProcessGroup) -> Shard:
    """Where this rank's rows of the weight are in the whole, in order of rank.

    Raises ValueError, on every rank, where ranks differ in the features' shape or one has fewer than 2 rows.
    """
    mine = torch.tensor([len(weight), features.numel(), sum(features.shape[-1:])], device=weight.device)
    found = [torch.zeros_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    each = torch.stack(found).tolist()
    if any(other[1:] != each[0][1:] for other in each):
        raise ValueError(
            f"all ranks of the group must have the same features, got (numbers, width) "
            f"{[tuple(other[1:]) for other in each]}."
        )
    rows = [other[0] for other in each]
    if min(rows) < 2:
        raise ValueError(f"every rank of the group needs at least 2 rows of the weight, got {rows}.")
    return Shard(group, sum(rows[: dist.get_rank(group)]), sum(rows))


@untraced
def shared(features: Float[Tensor, "*batch features"], group: dist.ProcessGroup) -> Tensor:
    """The features as they are; their gradient is summed over ranks."""
    return _Shared.apply(features, group)


def _no_second_derivatives() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("linear_cross_entropy with a group has no second derivatives (create_graph=True).")


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _no_second_derivatives()
        # Half precision is added up in float32.
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        total = total.contiguous()
        dist.all_reduce(total, group=ctx.group)
        return total.to(gradient.dtype), None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rest: Tensor, at: Tensor, mixed: Tensor, group: dist.ProcessGroup
    ) -> tuple[Tensor, ...]:
        top = rest.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        total = torch.stack([torch.exp(rest - top), at, mixed])
        dist.all_reduce(total, group=group)
        whole = top + total[0].log()
        ctx.save_for_backward(torch.exp(rest - whole))
        return whole, total[1], total[2]

    @staticmethod
    def backward(ctx: Any, d_rest: Tensor, d_at: Tensor, d_mixed: Tensor) -> tuple[Tensor | None, ...]:
        _no_second_derivatives()
        (share,) = ctx.saved_tensors
        return d_rest * share, d_at, d_mixed, None
