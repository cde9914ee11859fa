"""Soft-NMS as a part: two boxes by hand, its limits, and many images at once. The op's loops are tested with
the op (`tests/ops/test_nms.py`)."""

import math

import pytest
import torch

from logitkit.calibrate import SoftNMS, batched_soft_nms
from logitkit.ops import nms

PAIR = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10]], dtype=torch.float64)  # IoU 1/3
SCORES = torch.tensor([0.9, 0.8], dtype=torch.float64)


def scene(n=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(n, 2, generator=g, dtype=torch.float64)
    boxes = torch.cat([corner, corner + 10 + 20 * torch.rand(n, 2, generator=g)], dim=1)
    return boxes, 0.01 + torch.rand(n, generator=g, dtype=torch.float64)


def test_two_boxes_by_hand():
    found = {m: SoftNMS(m).transform(PAIR, SCORES).tolist() for m in ("gaussian", "linear", "hard")}
    assert found["gaussian"] == pytest.approx([0.9, 0.8 * math.exp(-(1 / 9) / 0.5)])
    assert found["linear"] == pytest.approx([0.9, 0.8 * 2 / 3])
    assert found["hard"] == pytest.approx([0.9, 0.0])
    assert SoftNMS("linear", iou_threshold=0.34).transform(PAIR, SCORES).tolist() == SCORES.tolist()


def test_the_next_box_is_chosen_by_current_scores():
    """The second best box falls behind the third, which then keeps its score and lowers the second's."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [4, 0, 14, 10]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    o01, o02, o12 = 9 / 11, 6 / 14, 7 / 13
    third = 0.7 * (1 - o02)
    second = 0.8 * (1 - o01) * (1 - o12)
    kept, values = SoftNMS("linear")(boxes, scores)
    assert kept.tolist() == [0, 2, 1]
    assert values.tolist() == pytest.approx([0.9, third, second])


@pytest.mark.parametrize(
    ("method", "order", "expected"),
    [
        (
            "gaussian", [0, 2, 4, 6, 7, 5, 3, 1],
            [0.88658839, 0.86700559, 0.79693967, 0.78428543, 0.13932668, 0.12549672, 0.07776191, 0.06940635],
        ),
        (
            "linear", [0, 2, 4, 6, 7, 5, 3, 1],
            [0.88658839, 0.86746717, 0.84615034, 0.82278544, 0.13460287, 0.12425501, 0.07025464, 0.04960437],
        ),
        ("hard", [0, 2, 4, 6], [0.88658839, 0.86746717, 0.84615034, 0.82278544]),
    ],
)  # fmt: skip
def test_scores_of_the_official_code(method, order, expected):
    """cpu_soft_nms of lib/nms/cpu_nms.pyx in github.com/bharatsingh430/soft-nms, float32, at its defaults. It
    counts pixels: its boxes are ours with the far corner one further."""
    k = torch.arange(8).double()
    x, y = 10 + 8 * (1.3 * k).sin(), 9 + 7 * (0.9 * k).cos()
    boxes = torch.stack([x, y, x + 12 + 4 * (2.1 * k).sin() + 1, y + 11 + 3 * (1.7 * k).cos() + 1], dim=1)
    kept, values = SoftNMS(method)(boxes, 0.55 + 0.4 * (3.1 * k + 1).sin())
    assert kept.tolist() == order
    assert values.tolist() == pytest.approx(expected, rel=2e-6)


def test_limits_and_hard_suppression():
    boxes, scores = scene()
    torch.testing.assert_close(SoftNMS(sigma=1e12).transform(boxes, scores), scores)
    sharp, _ = SoftNMS(sigma=1e-12)(boxes, scores)
    assert torch.equal(sharp, nms(boxes, scores, 0.0))
    hard, values = SoftNMS("hard", iou_threshold=0.4)(boxes, scores)
    assert torch.equal(hard, nms(boxes, scores, 0.4))
    torch.testing.assert_close(values, scores[hard])


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_order_of_the_boxes_does_not_matter(method):
    boxes, scores = scene()
    order = torch.randperm(60)
    plain = SoftNMS(method).transform(boxes, scores)
    torch.testing.assert_close(SoftNMS(method).transform(boxes[order], scores[order]), plain[order])


def test_scores_have_the_gradient_of_their_factors():
    scores = SCORES.clone().requires_grad_()
    SoftNMS().transform(PAIR, scores).sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([1, math.exp(-(1 / 9) / 0.5)], dtype=torch.float64))


def test_many_images_and_classes_at_once():
    scenes = [scene(40, seed) for seed in range(5)]
    boxes, scores = (torch.stack([each[i] for each in scenes]) for i in (0, 1))
    scores[2, 30:] = 0
    classes = torch.randint(-1, 3, (5, 40))
    together = batched_soft_nms(boxes, scores, classes)
    for i in range(5):
        torch.testing.assert_close(together[i], SoftNMS().transform(boxes[i], scores[i], classes[i]))
    assert (together[2, 30:] == 0).all()
    alone = batched_soft_nms(boxes, scores, method="linear")
    torch.testing.assert_close(alone[1], SoftNMS("linear").transform(boxes[1], scores[1]))


@pytest.mark.parametrize(
    "bad", [{"method": "soft"}, {"sigma": 0.0}, {"iou_threshold": 1.5}, {"score_threshold": 0.0}], ids=str
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SoftNMS(**bad)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(2,\)"):
        batched_soft_nms(PAIR, SCORES)
