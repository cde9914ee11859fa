"""Maximum softmax probability, to the last digits."""

import pytest
import torch

from logitkit.detect import MSP


def test_it_is_one_minus_the_largest_probability():
    logits = 2 * torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(MSP().fit(logits).score(logits), 1 - logits.softmax(1).amax(1))


def test_confident_rows_keep_their_order_in_float32():
    logits = torch.tensor([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0], [80.0, 0.0, 0.0]])
    score = MSP().score(logits)
    torch.testing.assert_close(score, 2 * torch.exp(-logits[:, 0]), rtol=1e-6, atol=0)


def test_ties_and_large_logits():
    assert MSP().score(torch.zeros(1, 4)).item() == pytest.approx(0.75)
    assert MSP().score(torch.tensor([[1e4, -1e4]])).item() == 0
