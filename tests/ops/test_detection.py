"""Average precision against plain loops over sorted lists, and scenes whose answer is known."""

import pytest
import torch

from logitkit.ops import average_precision, box_iou


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def scenes(images=6, n=12, m=4, classes=1, seed=0):
    g = torch.Generator().manual_seed(seed)

    def boxes(count):
        corner = 40 * torch.rand(images, count, 2, generator=g, dtype=torch.float64)
        return torch.cat([corner, corner + 10 + 10 * torch.rand(images, count, 2, generator=g)], dim=2)

    truth = boxes(m)
    found = truth.repeat(1, n // m, 1) + 2 * torch.randn(images, n, 4, generator=g)
    found[..., 2:] = torch.maximum(found[..., :2] + 1, found[..., 2:])
    scores = torch.rand(images, n, generator=g)
    scores[0, 5:] = 0  # fewer boxes here
    true_labels = torch.randint(classes, (images, m), generator=g)
    labels = (true_labels.repeat(1, n // m) + (torch.rand(images, n, generator=g) < 0.2)) % classes
    true_labels[1, 2:] = -1  # fewer objects here
    return found, scores, truth, labels, true_labels


def loops(boxes, scores, truth, labels, true_labels, thresholds):
    values = []
    for k in sorted(set(true_labels[true_labels >= 0].tolist())):
        objects = int((true_labels == k).sum())
        for threshold in thresholds:
            order = sorted(
                (
                    (i, j)
                    for i in range(len(boxes))
                    for j in range(boxes.shape[1])
                    if scores[i, j] > 0 and labels[i, j] == k
                ),
                key=lambda at: -float(scores[at]),
            )
            taken, hits = set(), []
            for i, j in order:
                free = [
                    (iou(boxes[i, j].tolist(), truth[i, t].tolist()), t)
                    for t in range(truth.shape[1])
                    if true_labels[i, t] == k and (i, t) not in taken
                ]
                best = max(free, default=(-1, -1))
                hits.append(best[0] >= threshold)
                if hits[-1]:
                    taken.add((i, best[1]))
            points = [(sum(hits[: d + 1]) / objects, sum(hits[: d + 1]) / (d + 1)) for d in range(len(hits))]
            best = [
                max((p for r, p in points if r >= level / 100 - 1e-12), default=0) for level in range(101)
            ]
            values.append(sum(best) / 101)
    return sum(values) / len(values)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_is_that_of_the_loops(classes, seed):
    inputs = scenes(classes=classes, seed=seed)
    found = average_precision(*inputs)
    assert 0.05 < found < 0.95
    assert found == pytest.approx(loops(*inputs, [0.5 + 0.05 * i for i in range(10)]))
    assert average_precision(*inputs, thresholds=[0.5]) == pytest.approx(loops(*inputs, [0.5]))


def test_known_scenes():
    _, _, truth, _, _ = scenes()
    scores = torch.rand(6, 4) + 0.1
    assert average_precision(truth, scores, truth) == 1
    assert average_precision(truth + 1000, scores, truth) == 0
    assert average_precision(truth, torch.zeros(6, 4), truth) == 0
    half = scores * (torch.arange(4) < 2)
    assert average_precision(truth, half, truth) == pytest.approx(51 / 101)  # recalls 0 to 0.5
    # a duplicate that comes after its object costs nothing once all are found, one before it halves
    twice = torch.cat([truth[:1, :1], truth[:1, :1]], dim=1)
    assert average_precision(twice, torch.tensor([[0.9, 0.8]]), truth[:1, :1]) == 1
    wrong = torch.cat([truth[:1, :1] + 1000, truth[:1, :1]], dim=1)
    assert average_precision(wrong, torch.tensor([[0.9, 0.8]]), truth[:1, :1]) == 0.5


def test_iou_of_pairs():
    boxes, _, truth, _, _ = scenes()
    found = box_iou(boxes[0], truth[0])
    for i in range(12):
        for j in range(4):
            assert found[i, j].item() == pytest.approx(iou(boxes[0, i].tolist(), truth[0, j].tolist()))
    assert box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_bad_input():
    boxes, scores, truth, _, true_labels = scenes()
    with pytest.raises(ValueError, match=r"got \(6, 12, 4\), \(6, 12\) and \(5, 4, 4\)"):
        average_precision(boxes, scores, truth[:5])
    with pytest.raises(ValueError, match="holds no object"):
        average_precision(boxes, scores, truth, None, torch.full_like(true_labels, -1))
