"""Soft-NMS: overlapping detections lose score instead of being deleted."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import soft_nms
from logitkit.registry import Choice, Real, part


@part(
    "soft_nms",
    "calibrate",
    title="Soft-NMS: Improving Object Detection With One Line of Code",
    paper="arXiv:1704.04503",
    number=73,
    tasks=("boxes",),
    search_space={
        "method": Choice("gaussian", "linear", "hard"),
        "sigma": Real(0.1, 1.0, log=True),
        "iou_threshold": Real(0.3, 0.7),
    },
)
class SoftNMS(nn.Module):
    """Soft non-maximum suppression: for crowded scenes, where deleting every box that overlaps a better one
    deletes objects. It goes where hard suppression went, without retraining the detector.

    Equation: take the box M with the highest current score, keep it at that score, multiply the score of
    every remaining box b by f(o), o = IoU(M, b), and repeat: f(o) = exp(-o^2 / sigma) ("gaussian"); 1 - o
    where o >= iou_threshold, else 1 ("linear"); 0 where o >= iou_threshold, else 1 ("hard"). Boxes whose
    score falls below score_threshold are dropped.

    Shapes: `part(boxes, scores, classes)` with boxes (n, 4) corners (x1, y1, x2, y2), scores (n,) in any
    positive unit, and labels (n,) or None -> indices and decayed scores of the boxes that are left, best
    first. `transform` takes the same and returns the decayed scores (n,) in place, 0 for dropped boxes.
    Boxes of different classes do not meet. Scores have a gradient, boxes have none.

    Defaults: gaussian with sigma = 0.5, the linear rule from 0.3 and a score threshold of 0.001: the paper's.

    Raises: ValueError for another method, a sigma or score threshold that is not positive, an IoU threshold
    outside (0, 1], wrong shapes or dtypes, corners in the wrong order, numbers that are not finite, negative
    scores.

    Source: Bodla, Singh, Chellappa, Davis, ICCV 2017, arXiv:1704.04503, figure 2 and section 3. Areas are
    those of real corners, where the authors' code counts pixels, one more in each direction.

    Not for: scenes whose density is known and constant, where a hard threshold tuned to it does as well.
    """

    def __init__(
        self,
        method: Literal["gaussian", "linear", "hard"] = "gaussian",
        sigma: float = 0.5,
        iou_threshold: float = 0.3,
        score_threshold: float = 0.001,
    ) -> None:
        super().__init__()
        self.method = method
        self.sigma = sigma
        self.iou_threshold = iou_threshold
        self.score_threshold = score_threshold
        self(torch.zeros(0, 4), torch.zeros(0))  # the op says what it does not take

    def forward(
        self,
        boxes: Float[Tensor, "n 4"],
        scores: Float[Tensor, " n"],
        classes: Int[Tensor, " n"] | None = None,
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
        return soft_nms(
            boxes,
            scores,
            method=self.method,
            sigma=self.sigma,
            iou_threshold=self.iou_threshold,
            score_threshold=self.score_threshold,
            classes=classes,
        )

    def transform(
        self,
        boxes: Float[Tensor, "n 4"],
        scores: Float[Tensor, " n"],
        classes: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """The decayed score of every box."""
        kept, values = self(boxes, scores, classes)
        return torch.zeros_like(scores, dtype=values.dtype).scatter(0, kept, values)


def batched_soft_nms(
    boxes: Float[Tensor, "images n 4"],
    scores: Float[Tensor, "images n"],
    classes: Int[Tensor, "images n"] | None = None,
    *,
    method: Literal["gaussian", "linear", "hard"] = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
) -> Float[Tensor, "images n"]:
    """`SoftNMS.transform` of many images at once. An image with fewer boxes has rows of score 0, which stay
    0. Raises ValueError as it does."""
    if boxes.ndim != 3 or scores.shape != boxes.shape[:2]:
        raise ValueError(
            f"boxes and scores must have shapes (images, n, 4) and (images, n), got {tuple(boxes.shape)} and"
            f" {tuple(scores.shape)}."
        )
    group = torch.arange(len(boxes), device=boxes.device)[:, None].expand(scores.shape)
    if classes is not None and classes.numel():
        label = classes - classes.amin()
        group = group * (label.amax() + 1) + label
    part = SoftNMS(method, sigma, iou_threshold, score_threshold)
    return part.transform(boxes.flatten(0, 1), scores.flatten(), group.flatten()).view(scores.shape)
