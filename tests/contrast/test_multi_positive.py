"""Softmax over all labels with several positives, against a loop and cross-entropy."""

import math

import torch
from torch.nn import functional as F

from logitkit.contrast import MultiPositive

SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.0, -0.5, 3.0], [0.1, 0.2, 0.3, 0.4]]
LABELS = [[0, 2], [3, -1], [-1, -1]]


def test_loop_over_plain_floats():
    expected = []
    for row, labels in zip(SCORES, LABELS, strict=True):
        total = sum(math.exp(s) for s in row)
        terms = [-math.log(math.exp(row[y]) / total) for y in labels if y >= 0]
        expected.append(sum(terms) / len(terms) if terms else 0.0)
    scores, target = torch.tensor(SCORES), torch.tensor(LABELS)
    torch.testing.assert_close(MultiPositive(reduction="none")(scores, target), torch.tensor(expected))
    # a row without labels does not count
    torch.testing.assert_close(MultiPositive()(scores, target), torch.tensor(sum(expected) / 2))


def test_one_positive_is_cross_entropy():
    g = torch.Generator().manual_seed(1)
    scores, y = torch.randn(8, 30, generator=g), torch.randint(30, (8,), generator=g)
    torch.testing.assert_close(MultiPositive()(scores, y[:, None]), F.cross_entropy(scores, y))


def test_positives_compete():
    scores = torch.zeros(1, 4, requires_grad=True)
    MultiPositive().terms(scores, torch.tensor([[True, True, False, False]]))[0, 0].backward()
    assert float(scores.grad[0, 1]) > 0
