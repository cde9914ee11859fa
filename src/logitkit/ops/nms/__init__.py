"""Non-maximum suppression of boxes: hard, and the soft kinds that lower scores instead."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.checks import check_positive
from logitkit.ops.dispatch import implementation, untraced
from logitkit.ops.nms import reference

METHODS = ("gaussian", "linear", "hard")


def nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    iou_threshold: float,
    *,
    classes: Int[Tensor, " n"] | None = None,
) -> Int[Tensor, " kept"]:
    """Indices of the boxes that overlap no better kept box by more than `iou_threshold`, best first.

    As `torchvision.ops.nms` (and `batched_nms` with `classes`: boxes of different classes do not meet, and no
    coordinates are shifted to see to that). Of equal scores the lowest index is best. boxes: corners (x1, y1,
    x2, y2). The intersection over union is computed in the dtype of boxes and scores (half precision in
    float32) as the formula reads, so that the picks are those of the plain loop, bit for bit.

    Pays: always on a CPU: a box is compared with the boxes near it, 16 at a time. On a GPU a plain loop runs;
    torchvision's own kernel is the better choice there.

    Raises: ValueError for wrong shapes or dtypes, corners that are not finite or in the wrong order, NaN
    scores, an `iou_threshold` outside [0, 1].
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}.")
    boxes, scores, classes = _check(boxes.detach(), scores.detach(), classes)
    order = scores.argsort(descending=True, stable=True)
    # What the search compares are ranks, which are positive and never equal.
    ranks = torch.empty_like(boxes[:, 0])
    ranks[order] = torch.arange(len(order), 0, -1, device=boxes.device, dtype=boxes.dtype)
    return _order(_suppress(boxes, ranks, classes, "above", 1.0, iou_threshold, 0.5))


def soft_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.001,
    classes: Int[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Indices and decayed scores of the boxes, in decreasing order of decayed score.

    Repeatedly the box with the largest current score is taken, and the score of every box that is left is
    multiplied by f(o), o its intersection over union with the taken one:

        gaussian  f(o) = exp(-o^2 / sigma)
        linear    f(o) = 1 - o where o >= iou_threshold, else 1
        hard      f(o) = 0 where o >= iou_threshold, else 1

    Boxes whose score is or falls below `score_threshold` are dropped. With `classes`, boxes of different
    classes do not meet. Of equal scores the lowest index is taken first. Scores have a gradient, with the
    factors and the order held fixed (as they are almost everywhere); boxes have none.

    Error: factors within 5e-7 of their value in float32, so a score within 5e-7 times the number of boxes
    that lowered it, relatively. Picks are those of the plain loop but for scores closer than that.

    Pays: always on a CPU: a taken box meets only the boxes near it, 16 at a time. On a GPU a plain loop runs.

    Raises: ValueError for wrong shapes or dtypes, another method, corners that are not finite or in the wrong
    order, scores that are negative or not finite, a `sigma` or `score_threshold` not above 0, an
    `iou_threshold` outside (0, 1].

    Source: Bodla, Singh, Chellappa, Davis, arXiv:1704.04503.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    check_positive(sigma=sigma, score_threshold=score_threshold)
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}.")
    boxes, s, classes = _check(boxes.detach(), scores, classes)
    plain = s.detach()
    if len(plain) and not (plain.amin() >= 0 and plain.amax() < math.inf):
        raise ValueError(
            f"scores must be finite and not negative, got {float(plain.amin())} to {float(plain.amax())}."
        )
    decayed = _suppress(boxes, plain, classes, method, sigma, iou_threshold, score_threshold)
    kept = _order(decayed)
    values = decayed[kept]
    if s.requires_grad:
        values = s[kept] * (values / plain[kept])
    return kept, values


@untraced
def _suppress(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor | None,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
) -> Tensor:
    """Decayed scores, -1 where a box was dropped."""
    kernel = implementation(reference, boxes, cpu=True)
    out: Tensor = kernel.suppress(boxes, scores, classes, method, sigma, iou_threshold, score_threshold)
    return out


def _order(decayed: Tensor) -> Tensor:
    kept = (decayed >= 0).nonzero()[:, 0]
    return kept[decayed[kept].argsort(descending=True, stable=True)]


def _check(
    boxes: Tensor, scores: Tensor, classes: Tensor | None
) -> tuple[Float[Tensor, "n 4"], Float[Tensor, " n"], Int[Tensor, " n"] | None]:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (n, 4), got {tuple(boxes.shape)}.")
    n = len(boxes)
    if n >= 2**24:
        raise ValueError(f"there may be fewer than 2^24 boxes, got {n}.")
    for name, x in (("scores", scores), ("classes", classes)):
        if x is not None and x.shape != (n,):
            raise ValueError(f"{name} must have shape ({n},) to match the boxes, got {tuple(x.shape)}.")
    for name, x in (("boxes", boxes), ("scores", scores)):
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}.")
    if classes is not None and (classes.is_floating_point() or classes.is_complex()):
        raise ValueError(f"classes must hold integer labels, got {classes.dtype}.")
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError("boxes must be finite.")
    if not bool((boxes[:, 2:] >= boxes[:, :2]).all()):
        row = int((boxes[:, 2:] < boxes[:, :2]).any(1).nonzero()[0, 0])
        raise ValueError(f"boxes must have x1 <= x2 and y1 <= y2, got {boxes[row].tolist()} in row {row}.")
    if bool(torch.isnan(scores).any()):
        raise ValueError("scores must not hold NaN.")
    return boxes, scores, classes
