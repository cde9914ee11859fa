"""Activator: the network on images: what it cannot know, and bad settings."""

import pytest
import torch

from logitkit.layers import GatingUnit
from logitkit.models import Activator


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("position", [False, True])
def test_a_bag_of_patches(position):
    torch.manual_seed(0)
    model = Activator((1, 8, 8), depth=2, dim=16, position=position).double()
    x = draw(3, 1, 8, 8)
    swapped = torch.cat([x[:, :, 4:], x[:, :, :4]], dim=2)  # moves whole patches of 2x2
    assert torch.allclose(model(x), model(swapped), rtol=1e-12) != position


def test_bad_settings():
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
        GatingUnit(8, 0)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        Activator((1, 8, 8), depth=0)
