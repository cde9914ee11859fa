"""Targets of several labels at once: what losses check of them, and the mask they work with."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logitkit.ops.checks import check_logits, values_visible

Labels = Bool[Tensor, "batch labels"] | Float[Tensor, "batch labels"] | Int[Tensor, "batch most"]


def check_multilabel(
    scores: Float[Tensor, "batch labels"], target: Labels
) -> tuple[Float[Tensor, "batch labels"], Bool[Tensor, "batch labels"]]:
    """Scores in at least float32, and which labels are relevant.

    target: a bool mask, the same as floats 0 and 1, or whole-number lists of labels filled up with -1.
    Raises ValueError for scores as `check_logits` does, a target of another shape, floats other than 0 and 1,
    and labels outside [-1, labels).
    """
    scores = check_logits(scores, "scores")
    batch, labels = scores.shape
    if target.ndim != 2 or len(target) != batch:
        raise ValueError(f"target must have {batch} rows, as the scores have, got {tuple(target.shape)}.")
    visible = values_visible(target) and target.numel() > 0
    if target.is_floating_point() or target.dtype == torch.bool:
        if target.shape != scores.shape:
            raise ValueError(f"a target mask must have shape {(batch, labels)}, got {tuple(target.shape)}.")
        mask = target > 0.5
        if visible and bool((target != mask).any()):
            raise ValueError(f"a target mask must hold 0 and 1, got {target[target != mask][0].item():g}.")
        return scores, mask
    if visible and (int(target.min()) < -1 or int(target.max()) >= labels):
        wrong = int(target.min()) if int(target.min()) < -1 else int(target.max())
        raise ValueError(f"target holds the label {wrong}; expected labels in [0, {labels}), or -1 for none.")
    place = target.long().where(target >= 0, labels)
    mask = torch.zeros(batch, labels + 1, dtype=torch.bool, device=scores.device)
    return scores, mask.scatter(1, place, True)[:, :labels]
