"""The loop over picked boxes in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def suppress(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    classes: Int[Tensor, " n"] | None,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
) -> Float[Tensor, " n"]:
    """Each box's score when it was picked; -1 if it fell below `score_threshold` before."""
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    left = torch.where(scores >= score_threshold, scores, -1)
    out = torch.full_like(scores, -1)
    for _ in range(len(scores)):
        i = int(left.argmax())
        if left[i] < 0:
            break
        out[i] = left[i]
        width = torch.minimum(x2, x2[i]) - torch.maximum(x1, x1[i])
        height = torch.minimum(y2, y2[i]) - torch.maximum(y1, y1[i])
        both = width.clamp(min=0) * height.clamp(min=0)
        union = (area + area[i]) - both
        iou = both / torch.where(union > 0, union, 1)
        if classes is not None:
            iou = torch.where(classes == classes[i], iou, 0)
        if method == "gaussian":
            factor = torch.exp(-iou * iou / sigma)
        elif method == "linear":
            factor = torch.where(iou >= iou_threshold, 1 - iou, 1)
        else:
            over = iou >= iou_threshold if method == "hard" else iou > iou_threshold
            factor = torch.where(over, 0.0, 1.0)
        left = left * factor
        left = torch.where(left >= score_threshold, left, -1)
        left[i] = -1
    return out
