"""What learning one task after another keeps, from accuracies[i, j]: on task j after learning task i."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def incremental_accuracy(accuracies: Float[Tensor, "tasks tasks"]) -> Float[Tensor, " tasks"]:
    """Mean accuracy after each task on the tasks learned so far; its last is the final accuracy, its mean the
    average incremental accuracy. For tasks of equal size. What is above the diagonal is not looked at."""
    _check(accuracies)
    return accuracies.tril().sum(dim=1) / accuracies.new_ones(len(accuracies)).cumsum(dim=0)


def forgetting(accuracies: Float[Tensor, "tasks tasks"]) -> Float[Tensor, ""]:
    """Mean over all tasks but the last of the best accuracy before the end minus that at the end."""
    _check(accuracies)
    if len(accuracies) < 2:
        raise ValueError(f"forgetting needs at least 2 tasks, got {len(accuracies)}.")
    past = accuracies[:-1, :-1]
    learned = accuracies.new_ones(past.shape).tril().bool()
    return (past.masked_fill(~learned, -float("inf")).amax(dim=0) - accuracies[-1, :-1]).mean()


def _check(accuracies: Tensor) -> None:
    if accuracies.ndim != 2 or accuracies.shape[0] != accuracies.shape[1] or len(accuracies) == 0:
        raise ValueError(f"accuracies must have shape (tasks, tasks), got {tuple(accuracies.shape)}.")
