"""Cross-entropy against torch's module and a sum over plain floats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from logitkit.losses import CrossEntropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_torchs_cross_entropy(reduction: str, smoothing: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=g, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, -100, 1, 0])
    ours = CrossEntropy(smoothing, reduction=reduction)
    theirs = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))


def test_class_weights_are_torchs_without_smoothing() -> None:
    g = torch.Generator().manual_seed(1)
    logits, target = torch.randn(6, 3, generator=g), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = torch.tensor([1.0, 2.0, 0.5])
    ours, theirs = CrossEntropy(weight=weight), nn.CrossEntropyLoss(weight=weight)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))


def test_sum_over_plain_floats() -> None:
    row, y, s = [0.2, -1.0, 0.7], 2, 0.3
    log_p = [v - math.log(sum(map(math.exp, row))) for v in row]
    expected = -(1 - s) * log_p[y] - s / 3 * sum(log_p)
    assert CrossEntropy(s)(torch.tensor([row]), torch.tensor([y])).item() == pytest.approx(expected, rel=1e-6)


def test_only_ignored_rows_give_zero_and_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = CrossEntropy()(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_smoothing_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        CrossEntropy(1.5)
