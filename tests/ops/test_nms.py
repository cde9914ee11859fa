"""Suppression against literal loops over Python numbers, in both implementations."""

import math

import pytest
import torch

from logitkit.ops import nms, soft_nms, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def scene(n, size, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    centre, half = torch.rand(n, 2, generator=g) * size, torch.rand(n, 2, generator=g) * 20 + 5
    return torch.cat([centre - half, centre + half], 1).to(dtype), torch.rand(n, generator=g).to(dtype)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def loop(boxes, scores, factor, least, classes=None):
    boxes, left = boxes.tolist(), dict(enumerate(scores.tolist()))
    classes = [0] * len(boxes) if classes is None else classes.tolist()
    kept = []
    while left := {i: s for i, s in left.items() if s >= least}:
        best = min(left, key=lambda i: (-left[i], i))
        kept.append((best, left.pop(best)))
        for i in left:
            if classes[i] == classes[best]:
                left[i] *= factor(iou(boxes[best], boxes[i]))
    return [i for i, _ in kept], [s for _, s in kept]


def hard_loop(boxes, scores, threshold):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i)):
        if all(iou(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    return kept


FACTORS = {
    "gaussian": lambda o: math.exp(-(o**2) / 0.5),
    "linear": lambda o: 1 - o if o >= 0.3 else 1.0,
    "hard": lambda o: 0.0 if o >= 0.3 else 1.0,
}


@BOTH
@pytest.mark.parametrize("method", FACTORS)
@pytest.mark.parametrize(("n", "size"), [(0, 1), (1, 1), (2, 10), (33, 60), (300, 150), (300, 30)])
@pytest.mark.parametrize("labels", [None, 3])
def test_soft_picks_and_scores_are_those_of_the_loop(name, method, n, size, labels):
    boxes, scores = scene(n, size, seed=n)
    classes = None if labels is None else torch.randint(labels, (n,))
    expected, values = loop(boxes, scores, FACTORS[method], 0.001, classes)
    with use(name):
        picks, decayed = soft_nms(boxes, scores, method=method, classes=classes)
    assert picks.dtype == torch.int64
    assert picks.tolist() == expected
    torch.testing.assert_close(decayed, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=0)


@BOTH
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_hard_picks_are_those_of_the_loop_whatever_the_scores(name, threshold):
    boxes, scores = scene(250, 100)
    scores = scores * 20 - 10
    scores[3], scores[5] = torch.inf, -torch.inf
    with use(name):
        assert nms(boxes, scores, threshold).tolist() == hard_loop(boxes, scores, threshold)


@pytest.mark.parametrize("size", [400, 60])
def test_float32_picks_do_not_depend_on_the_implementation(size):
    boxes, scores = scene(1500, size, dtype=torch.float32)
    found = {}
    for name in ("cpu", "reference"):
        with use(name):
            found[name] = (
                nms(boxes, scores, 0.5),
                soft_nms(boxes, scores),
                soft_nms(boxes, scores, method="linear"),
            )
    (hard, gaussian, linear), (hard2, gaussian2, linear2) = found["cpu"], found["reference"]
    assert torch.equal(hard, hard2)
    assert torch.equal(gaussian[0], gaussian2[0])
    torch.testing.assert_close(gaussian[1], gaussian2[1], rtol=2e-5, atol=0)
    assert torch.equal(linear[0], linear2[0])
    assert torch.equal(linear[1], linear2[1])


def test_overlaps_at_the_threshold_are_decided_as_plain_torch_does():
    g = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 30, (800, 2), generator=g).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 7, (800, 2), generator=g)], 1) / 10
    scores = torch.rand(800, generator=g)
    for threshold in (1 / 3, 0.5, 0.25):
        with use("reference"):
            expected = nms(boxes, scores, threshold)
        with use("cpu"):
            assert torch.equal(nms(boxes, scores, threshold), expected)


@BOTH
def test_of_equal_scores_the_lowest_index_is_first(name):
    boxes, _ = scene(200, 150)
    twice = torch.cat([boxes, boxes]).flip(0)
    scores = torch.full((400,), 0.5, dtype=torch.float64)
    with use(name):
        assert nms(twice, scores, 0.5).tolist() == hard_loop(twice, scores, 0.5)
        picks, _ = soft_nms(twice, scores)
    assert picks.tolist() == loop(twice, scores, FACTORS["gaussian"], 0.001)[0]


@BOTH
def test_two_boxes_by_hand(name):
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])  # a third
    scores = torch.tensor([0.8, 0.9])
    with use(name):
        for method, factor in FACTORS.items():
            picks, values = soft_nms(boxes, scores, method=method)
            left = [0.9] + [0.8 * factor(1 / 3)] * (method != "hard")
            assert picks.tolist() == [1, 0][: len(left)]
            torch.testing.assert_close(values, torch.tensor(left))
        assert nms(boxes, scores, 0.3).tolist() == [1]
        assert nms(boxes, scores, 0.34).tolist() == [1, 0]
        assert nms(boxes, scores, 0.3, classes=torch.tensor([4, -7])).tolist() == [1, 0]


@BOTH
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_boxes_of_any_size_and_none(name, scale):
    boxes, scores = scene(120, 80)
    boxes[:10, 2:] = boxes[:10, :2]  # points
    boxes[10:20] = boxes[10]
    boxes[20:22] = torch.tensor([-1e4, -1e4, 1e4, 1e4], dtype=torch.float64)
    with use(name):
        picks, values = soft_nms(boxes * scale, scores)
        assert nms(boxes * scale, scores, 0.4).tolist() == hard_loop(boxes, scores, 0.4)
    expected, decayed = loop(boxes, scores, FACTORS["gaussian"], 0.001)
    assert picks.tolist() == expected
    torch.testing.assert_close(values, torch.tensor(decayed, dtype=torch.float64), rtol=1e-9, atol=0)


@BOTH
def test_limits_of_sigma(name):
    boxes, scores = scene(60, 60)
    with use(name):
        picks, values = soft_nms(boxes, scores, sigma=1e12, score_threshold=1e-9)
        assert picks.tolist() == scores.argsort(descending=True).tolist()
        torch.testing.assert_close(values, scores[picks], rtol=1e-9, atol=0)
        assert soft_nms(boxes, scores, sigma=1e-12)[0].tolist() == nms(boxes, scores, 0.0).tolist()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_layout(name, dtype):
    boxes, scores = scene(90, 60, dtype=dtype)
    strided = boxes.T.contiguous().T
    with use(name):
        picks, values = soft_nms(strided, scores)
        assert values.dtype == torch.float32
        expected, decayed = soft_nms(boxes.float(), scores.float())
    assert torch.equal(picks, expected)
    assert torch.equal(values, decayed)


@BOTH
def test_scores_have_the_gradient_of_fixed_factors(name):
    boxes, scores = scene(40, 40)
    s = scores.clone().requires_grad_()
    with use(name):
        picks, values = soft_nms(boxes, s)
    values.sum().backward()
    expected = torch.zeros_like(scores)
    expected[picks] = values.detach() / scores[picks]
    torch.testing.assert_close(s.grad, expected)
    assert not nms(boxes, s, 0.5).requires_grad


BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]])


@pytest.mark.parametrize(
    ("boxes", "scores", "more", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2), {}, r"got \(2, 3\)"),
        (BOXES, torch.zeros(3), {}, r"scores must have shape \(2,\)"),
        (BOXES, torch.zeros(2), {"classes": torch.zeros(1).long()}, r"classes must have shape \(2,\)"),
        (BOXES, torch.zeros(2), {"classes": torch.zeros(2)}, "classes must hold integer labels"),
        (BOXES.long(), torch.zeros(2), {}, "boxes must be floating point"),
        (BOXES, torch.zeros(2).long(), {}, "scores must be floating point"),
        (BOXES.flip(1), torch.zeros(2), {}, "in row 0"),
        (BOXES * torch.inf, torch.zeros(2), {}, "finite"),
        (BOXES, torch.tensor([0.0, torch.nan]), {}, "NaN"),
    ],
)
def test_bad_input_is_refused(boxes, scores, more, message):
    with pytest.raises(ValueError, match=message):
        nms(boxes, scores, 0.5, **more)
    with pytest.raises(ValueError, match=message):
        soft_nms(boxes, scores, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "soft"}, "got 'soft'"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"score_threshold": 0.0}, "score_threshold must be positive"),
        ({"iou_threshold": 0.0}, r"got 0\.0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(BOXES, torch.ones(2), **arguments)


def test_scores_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"got -1\.0 to 1\.0"):
        soft_nms(BOXES, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        nms(BOXES, torch.ones(2), 1.5)
