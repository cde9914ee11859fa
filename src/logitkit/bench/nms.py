"""Soft and hard non-maximum suppression of 5,000 boxes"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import nms, soft_nms

PEERS: tuple[str, ...] = ()
NOTE = """\
The published loop is the method's own code in plain Python, so in float64; the per-box forms do the inner
loop in one float32 array operation per step. "differences" counts the places at which a peer picks another
box than ours. Ours picks what the published loop picks. The float32 forms swap boxes whose decayed scores
agree to the last digits, and disagree there with each other too. Ours compares a box with those near it only,
and keeps block maxima for the search of the next one, so it gains most where boxes are spread out. One
thread."""
SIGMA, LEAST = 0.5, 0.001


def _published(boxes: list[list[float]], scores: list[float]) -> list[int]:
    left = [[*box, score, i] for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    end, i = len(left), 0
    while i < end:
        m = max(range(i, end), key=lambda q: left[q][4])
        left[i], left[m] = left[m], left[i]
        x1, y1, x2, y2 = left[i][:4]
        at = i + 1
        while at < end:
            b = left[at]
            width = min(x2, b[2]) - max(x1, b[0])
            if width > 0:
                height = min(y2, b[3]) - max(y1, b[1])
                if height > 0:
                    both = width * height
                    union = (x2 - x1) * (y2 - y1) + (b[2] - b[0]) * (b[3] - b[1]) - both
                    b[4] *= math.exp(-((both / union) ** 2) / SIGMA)
                    if b[4] < LEAST:
                        left[at], left[end - 1] = left[end - 1], left[at]
                        end -= 1
                        at -= 1
            at += 1
        i += 1
    return [int(b[5]) for b in left[:end]]


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    both = np.clip(width, 0, None) * np.clip(height, 0, None)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    result: np.ndarray = both / ((box[2] - box[0]) * (box[3] - box[1]) + area - both)
    return result


def _numpy(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    index, kept = np.arange(len(scores)), []
    while len(scores):
        m = scores.argmax()
        kept.append(int(index[m]))
        box = boxes[m]
        boxes, scores, index = np.delete(boxes, m, 0), np.delete(scores, m), np.delete(index, m)
        scores = scores * np.exp(-(_iou(box, boxes) ** 2) / SIGMA)
        left = scores >= LEAST
        boxes, scores, index = boxes[left], scores[left], index[left]
    return kept


def _torch(boxes: Tensor, scores: Tensor) -> list[int]:
    x1, y1, x2, y2 = boxes.unbind(1)
    area, s, kept = (x2 - x1) * (y2 - y1), scores.clone(), []
    for _ in range(len(s)):
        value, m = s.max(0)
        if value < LEAST:
            break
        kept.append(m)
        width = (torch.minimum(x2, x2[m]) - torch.maximum(x1, x1[m])).clamp(min=0)
        both = width * (torch.minimum(y2, y2[m]) - torch.maximum(y1, y1[m])).clamp(min=0)
        iou = both / (area + area[m] - both)
        s = s * torch.exp(-iou * iou / SIGMA)
        s[m] = -1
    return [int(i) for i in kept]


def _hard_numpy(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    order, kept = scores.argsort()[::-1], []
    while len(order):
        kept.append(int(order[0]))
        order = order[1:][_iou(boxes[order[0]], boxes[order[1:]]) <= 0.5]
    return kept


def _arms(size: float) -> Callable[[bool], Arms]:
    def build(small: bool) -> Arms:
        n = 60 if small else 5000
        rng = np.random.default_rng(0)
        centre, half = rng.random((n, 2)) * size, rng.random((n, 2)) * 20 + 5
        boxes = np.hstack([centre - half, centre + half]).astype(np.float32)
        scores = rng.random(n).astype(np.float32)
        b, s = torch.from_numpy(boxes), torch.from_numpy(scores)
        lists, numbers = boxes.tolist(), scores.tolist()
        found: dict[str, list[int]] = {}

        def arm(name: str, run: Callable[[], list[int]]) -> Arm:
            return lambda: found.update({name: run()})

        def ours(method: str) -> Arm:
            return lambda: found.update({f"ours, {method}": soft_nms(b, s, method=method)[0].tolist()})

        run: dict[str, Arm] = {
            "ours, gaussian": ours("gaussian"),
            "ours, linear": ours("linear"),
            "published loop": arm("published loop", lambda: _published(lists, numbers)),
            "numpy per box": arm("numpy per box", lambda: _numpy(boxes, scores)),
            "torch per box": arm("torch per box", lambda: _torch(b, s)),
            "ours, hard": arm("ours, hard", lambda: nms(b, s, 0.5).tolist()),
            "hard, numpy per box": arm("hard, numpy per box", lambda: _hard_numpy(boxes, scores)),
        }

        def values() -> dict[str, float]:
            result = {
                "kept": float(len(found["ours, gaussian"])),
                "kept, hard": float(len(found["ours, hard"])),
            }
            for peer in ("published loop", "numpy per box", "torch per box"):
                result[f"differences, {peer}"] = _differences(found["ours, gaussian"], found[peer])
            result["differences, hard"] = _differences(found["ours, hard"], found["hard, numpy per box"])
            return result

        return Arms(run, values=values)

    return build


def _differences(a: list[int], b: list[int]) -> float:
    return float(sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)))


def cases() -> list[Case]:
    goals = [
        Goal("ours, gaussian", 0.05, "numpy per box"),
        Goal("ours, gaussian", 0.05, "torch per box"),
        Goal("ours, gaussian", 0.004, "published loop"),
        Goal("differences, published loop", 0, unit="value"),
        Goal("differences, numpy per box", 0, unit="value"),
        Goal("differences, torch per box", 0, unit="value"),
        Goal("differences, hard", 0, unit="value"),
    ]
    return [
        Case("spread over 1000 x 1000", _arms(1000), goals),
        Case("crowded, 200 x 200", _arms(200), goals),
    ]
