"""Terminator: the network without residual connections on images."""

import pytest
import torch

from logitkit.layers import (
    HyperZZW,
    slow_neural_loss,
)
from logitkit.models import Terminator


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_evaluation_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    model, x = Terminator((1, 8, 8), widths=(12, 24)).double(), draw(6, 1, 8, 8)
    model(x), model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_slow_loss():
    a, b = draw(2, 3, 3), draw(4, 3, 3, seed=1)
    assert slow_neural_loss([a, a, torch.cat([a, a])]).item() == 0
    expected = (torch.cat([a, a]) - b).square().mean()
    torch.testing.assert_close(slow_neural_loss([a, b]), expected)
    with pytest.raises(ValueError, match="got 2 and 3"):
        slow_neural_loss([a, draw(3, 3, 3)])
    assert Terminator((1, 8, 8), widths=(12, 24)).slow_loss().requires_grad


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9)])
def test_backbone(shape):
    model, x = Terminator(shape), torch.randn(4, *shape)
    features = model.forward_features(x)
    assert features.shape == (4, 48, max(shape[1:]), max(shape[1:]))
    torch.testing.assert_close(model.pool(features), features.mean((2, 3)))


def test_bad_settings():
    with pytest.raises(ValueError, match="w0 must be positive, got 0"):
        HyperZZW(8, (2, 2), w0=0)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 4, dim\), got \(2, 5, 8\)"):
        HyperZZW(8, (2, 2))(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match="multiples of one another and of 1 channels"):
        Terminator((1, 8, 8), widths=(12, 18))
