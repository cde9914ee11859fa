"""The calibration error against a loop over plain floats and torchmetrics, in both implementations."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from logitkit.ops import calibration_error, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def sample(n=700, classes=9, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, classes, generator=g).to(dtype), torch.randint(classes, (n,), generator=g)


def by_hand(p, y, bins, norm):
    inside = [[] for _ in range(bins)]
    for row, label in zip(p.double().tolist(), y.tolist(), strict=True):
        confidence = max(row)
        b = next(b for b in range(bins) if confidence <= (b + 1) / bins)
        inside[b].append((confidence, row.index(confidence) == label))
    gaps = [(len(b), abs(sum(c - r for c, r in b)) / len(b)) for b in inside if b]
    n = sum(count for count, _ in gaps)
    if norm == "max":
        return max(gap for _, gap in gaps)
    if norm == "l1":
        return sum(count / n * gap for count, gap in gaps)
    return math.sqrt(sum(count / n * gap**2 for count, gap in gaps))


@BOTH
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize(("n", "classes", "bins"), [(1, 2, 1), (700, 9, 15), (513, 100, 7)])
def test_loop_over_plain_floats(name, norm, n, classes, bins):
    z, y = sample(n, classes)
    p = z.softmax(1)
    with use(name):
        assert calibration_error(p, y, bins=bins, norm=norm) == pytest.approx(
            by_hand(p, y, bins, norm), abs=1e-9
        )
        found = calibration_error(z, y, bins=bins, norm=norm, from_logits=True)
        assert found == pytest.approx(by_hand(z.double().softmax(1), y, bins, norm), abs=1e-6)


@BOTH
def test_torchmetrics_agrees(name):
    z, y = sample(5000)
    with use(name):
        assert calibration_error(z.softmax(1), y) == pytest.approx(
            multiclass_calibration_error(z.softmax(1), y, 9).item(), abs=1e-6
        )


@BOTH
def test_edges_of_bins_belong_below_and_ties_to_the_first(name):
    p = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([1, 1, 0])
    with use(name):
        # (0.25, 0.5]: confidence 0.5, wrong; (0.5, 0.75]: right; (0.75, 1]: right
        assert calibration_error(p, y, bins=4) == pytest.approx((0.5 + 0.25 + 0.0) / 3)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layouts(name, dtype):
    z, y = sample(300, dtype=dtype)
    strided = torch.stack([z, z], 2)[:, :, 0]
    with use(name):
        assert calibration_error(strided, y, from_logits=True) == pytest.approx(
            by_hand(z.double().softmax(1), y, 15, "l1"), abs=1e-6
        )
        assert 0 <= calibration_error((1e4 * z.double()).clamp(-6e4, 6e4).to(dtype), y, from_logits=True) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 0}, "got 0"),
        ({"norm": "l3"}, "got 'l3'"),
        ({"from_logits": False}, "logits need from_logits=True"),
        ({"scores": torch.full((700, 9), torch.nan)}, "NaN"),
        ({"scores": torch.full((700, 9), -torch.nan)}, "NaN"),
        ({"scores": torch.full((700, 9), torch.inf)}, "got inf"),
        ({"target": torch.full((700,), 9)}, "label 9"),
    ],
)
def test_bad_input_is_refused(change, message):
    z, y = sample()
    with pytest.raises(ValueError, match=message):
        calibration_error(**{"scores": z, "target": y, "from_logits": True, **change})
