"""Binary cross-entropy against a loop over plain floats and torch, and what a target may be."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import BinaryCrossEntropy

SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.0, -0.5, 3.0], [0.1, 0.2, 0.3, 0.4]]
LABELS = [[0, 2], [3, -1], [-1, -1]]


def test_loop_over_plain_floats():
    expected = []
    for row, labels in zip(SCORES, LABELS, strict=True):
        signed = [s if k in labels else -s for k, s in enumerate(row)]
        expected.append(sum(math.log(1 + math.exp(-s)) for s in signed))
    scores, target = torch.tensor(SCORES), torch.tensor(LABELS)
    torch.testing.assert_close(BinaryCrossEntropy(reduction="none")(scores, target), torch.tensor(expected))
    torch.testing.assert_close(BinaryCrossEntropy()(scores, target), torch.tensor(sum(expected) / 3))


def test_masks_lists_and_numbers_say_the_same_as_torch():
    g = torch.Generator().manual_seed(0)
    scores, mask = torch.randn(20, 9, generator=g), torch.rand(20, 9, generator=g) < 0.3
    lists = torch.full((20, 9), -1)
    for i, row in enumerate(mask):
        labels = row.nonzero()[:, 0]
        lists[i, : len(labels)] = labels
    expected = 9 * F.binary_cross_entropy_with_logits(scores, mask.float())
    for target in (mask, mask.float(), lists):
        torch.testing.assert_close(BinaryCrossEntropy()(scores, target), expected)


def test_extremes_stay_finite():
    for size, dtype in ((1e4, torch.float32), (1e3, torch.bfloat16)):
        scores = (size * torch.tensor([[1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 1.0, 0.0]])).to(dtype)
        scores.requires_grad_()
        loss = BinaryCrossEntropy()(scores, torch.tensor([[0, 1], [3, -1]]))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(scores.grad).all()


def test_what_a_target_may_not_be():
    scores = torch.randn(2, 4)
    for target, message in (
        (torch.full((2, 4), 0.5), "must hold 0 and 1, got 0.5"),
        (torch.ones(2, 3), r"must have shape \(2, 4\), got \(2, 3\)"),
        (torch.tensor([[4], [0]]), "holds the label 4"),
        (torch.tensor([[-2], [0]]), "holds the label -2"),
    ):
        with pytest.raises(ValueError, match=message):
            BinaryCrossEntropy()(scores, target)
