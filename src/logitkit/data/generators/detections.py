"""What a detector finds in crowded scenes: several boxes for an object, and false alarms."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from logitkit.data.base import Dataset
from logitkit.data.generators.check import at_least, fraction
from logitkit.ops import box_iou

MOST, SEEN, CANVAS = 15, 5, 1000.0


def detections(generator: Generator, n: int = 500, beside: float = 0.4, alarms: int = 5) -> Dataset:
    """Boxes that a noisy detector finds in crowded scenes, and the objects that are there.

    Each scene has 5 to 15 objects with sides from 60 to 160 on a canvas of 1000; one is, with the probability
    `beside`, a copy of another moved along an axis so that their IoU is 0.3 to 0.7. Each is found 5 times,
    with corners off by N(0, (0.05 side)^2) and a score of U(0.4, 1) of the object times the IoU with it, plus
    N(0, 0.05^2). There are `alarms` false boxes per scene, with scores U(0.05, 0.5).

    x is (n, 75 + alarms, 5): corners x1, y1, x2, y2 and the score, 0 where there is no box; y (n, 15, 4) the
    corners of the objects, zeros where there is none.
    """
    at_least(1, n=n)
    at_least(0, alarms=alarms)
    fraction(beside=beside)
    truth, labels, boxes, scores = detected(generator, n, beside, alarms)
    x = torch.cat([boxes, scores[..., None]], dim=2).float()
    y = torch.where((labels == 0)[..., None], truth, 0).float()
    return Dataset("detections", x, y, "boxes", "boxes")


def detected(
    g: Generator, images: int, beside: float = 0.4, alarms: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objects (images, MOST, 4) and their class, -1 where there is none; detections (images, n, 4) and their
    scores; in float64."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)

    def placed(n: int) -> Tensor:
        side = uniform(60, 160, images, n, 2)
        corner = uniform(0, 1, images, n, 2) * (CANVAS - side)
        return torch.cat([corner, corner + side], dim=2)

    truth = placed(MOST)
    near = uniform(0, 1, images, MOST) < beside
    overlap, axis = uniform(0.3, 0.7, images, MOST), torch.randint(2, (images, MOST), generator=g)
    row = torch.arange(images)
    for k in range(1, MOST):
        other = truth[row, torch.randint(k, (images,), generator=g)]
        side = (other[:, 2:] - other[:, :2]).gather(1, axis[:, k : k + 1])
        move = (1 - overlap[:, k]) / (1 + overlap[:, k]) * side[:, 0]
        shift = torch.nn.functional.one_hot(axis[:, k], 2).repeat(1, 2) * move[:, None]
        truth[:, k] = torch.where(near[:, k, None], other + shift, truth[:, k])
    count = torch.randint(5, MOST + 1, (images, 1), generator=g)
    labels = torch.where(torch.arange(MOST) < count, 0, -1)
    side = (truth[..., 2:] - truth[..., :2]).repeat(1, 1, 2)[:, :, None]
    jitter = 0.05 * side * torch.randn(images, MOST, SEEN, 4, generator=g, dtype=torch.float64)
    boxes = truth[:, :, None] + jitter
    match = box_iou(boxes, truth[:, :, None])[..., 0]
    noise = 0.05 * torch.randn(match.shape, generator=g, dtype=torch.float64)
    scores = (uniform(0.4, 1.0, images, MOST, 1) * match + noise).clamp(0.01, 1)
    scores = torch.where((labels == 0)[..., None], scores, 0.0)
    found = torch.cat([boxes.flatten(1, 2), placed(alarms)], dim=1)
    return truth, labels, found, torch.cat([scores.flatten(1), uniform(0.05, 0.5, images, alarms)], dim=1)
