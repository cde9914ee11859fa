"""What judges detected boxes: intersection over union, and average precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))


def box_iou(a: Float[Tensor, "*batch n 4"], b: Float[Tensor, "*batch m 4"]) -> Float[Tensor, "*batch n m"]:
    """Intersection over union of corners (x1, y1, x2, y2); 0 where both boxes are empty."""
    corner = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    size = (corner - torch.maximum(a[..., :, None, :2], b[..., None, :, :2])).clamp(min=0)
    both = size.prod(dim=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(dim=-1) for x in (a, b))
    union = area_a[..., :, None] + area_b[..., None, :] - both
    return both / torch.where(union > 0, union, 1)


def average_precision(
    boxes: Float[Tensor, "images n 4"],
    scores: Float[Tensor, "images n"],
    truth: Float[Tensor, "images m 4"],
    classes: Int[Tensor, "images n"] | None = None,
    truth_classes: Int[Tensor, "images m"] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """COCO's average precision: the mean over classes, IoU thresholds (0.5 to 0.95) and 101 recalls of the
    best precision at that recall or above.

    In order of score, each box takes the object of its image and class with which it overlaps most, if by at
    least the threshold and not taken yet; else it is a false alarm. Boxes with score 0 and objects of class
    -1 are not there (images have different numbers of them); without classes all are of one. Of equal scores
    the box of the first image, then the first box, comes first.

    Raises: ValueError for shapes that do not belong together, or no objects at all.
    """
    images, n = scores.shape
    if boxes.shape != (images, n, 4) or truth.ndim != 3 or truth.shape[::2] != (images, 4):
        raise ValueError(
            f"boxes, scores and truth must have shapes (images, n, 4), (images, n) and (images, m, 4), got"
            f" {tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(truth.shape)}."
        )
    if classes is None:
        classes = torch.zeros_like(scores, dtype=torch.long)
    if truth_classes is None:
        truth_classes = torch.zeros_like(truth[..., 0], dtype=torch.long)
    known = truth_classes[truth_classes >= 0].unique()
    if not len(known):
        raise ValueError(f"truth of shape {tuple(truth.shape)} holds no object.")
    overlap = box_iou(boxes.double(), truth.double())
    overlap = overlap.masked_fill(classes[..., None] != truth_classes[:, None], -1.0)
    hits = _hits(overlap, scores, overlap.new_tensor(thresholds))
    precision = [
        _interpolated(hits[:, here], scores[here], int((truth_classes == k).sum()))
        for k in known
        for here in [(classes == k) & (scores > 0)]
    ]
    return torch.stack(precision).mean().item()


def _hits(
    overlap: Float[Tensor, "images n m"], scores: Float[Tensor, "images n"], thresholds: Float[Tensor, " t"]
) -> Bool[Tensor, "t images n"]:
    """Whether each box takes an object, at each threshold."""
    images, n, m = overlap.shape
    device = overlap.device
    hits = torch.zeros(len(thresholds), images, n, dtype=torch.bool, device=device)
    free = torch.ones(len(thresholds), images, m, dtype=torch.bool, device=device)
    if m == 0:
        return hits
    row, objects = torch.arange(images, device=device), torch.arange(m, device=device)
    for column in scores.argsort(dim=1, descending=True, stable=True).T:
        candidate = overlap[row, column].masked_fill((scores[row, column] <= 0)[:, None], -1.0)
        best, at = torch.where(free, candidate, -1.0).max(dim=-1)
        hit = best >= thresholds[:, None]
        hits[:, row, column] = hit
        free &= ~(hit[..., None] & (at[..., None] == objects))
    return hits


def _interpolated(
    hits: Bool[Tensor, "t detections"], scores: Float[Tensor, " detections"], objects: int
) -> Float[Tensor, ""]:
    """Mean over thresholds and 101 recalls of the best precision at that recall or above."""
    if not scores.numel():
        return torch.zeros((), dtype=torch.float64, device=hits.device)
    right = hits[:, scores.argsort(descending=True, stable=True)].double().cumsum(dim=1)
    precision = right / torch.arange(1, len(scores) + 1, device=hits.device)
    best = precision.flip(1).cummax(dim=1).values.flip(1)
    levels = torch.linspace(0, 1, 101, dtype=torch.float64, device=hits.device)
    levels = levels.expand(len(hits), 101).contiguous()
    place = torch.searchsorted((right / objects).contiguous(), levels)
    reached = torch.nn.functional.pad(best, (0, 1)).gather(1, place)
    return reached.mean()
