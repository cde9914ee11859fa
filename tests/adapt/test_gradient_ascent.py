"""Gradient ascent as a part: minus what training descends."""

import torch
from torch.nn import functional as F

from logitkit.adapt import GradientAscent


def test_it_is_cross_entropy_the_other_way():
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 5, 0], [-100, -100, -100, -100]])
    expected = -F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(GradientAscent()(logits, labels), expected)
