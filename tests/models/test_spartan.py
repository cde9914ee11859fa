"""SpaRTAN: the network on images."""

import pytest
import torch

from logitkit.layers import SpartanBlock, WaveMixer
from logitkit.models import SpaRTAN


@pytest.mark.parametrize(
    ("shape", "map"), [((1, 8, 8), (4, 4)), ((3, 32, 32), (4, 4)), ((1, 9, 20), (3, 5)), ((1, 3, 3), (3, 3))]
)
def test_backbone(shape, map):
    model, x = SpaRTAN(shape), torch.randn(2, *shape)
    features = model.forward_features(x)
    assert features.shape == (2, 48, *map)
    torch.testing.assert_close(model.pool(features), features.mean((2, 3)))


def test_bad_settings():
    with pytest.raises(ValueError, match="channels must be a multiple of 8, got 12"):
        SpartanBlock(12)
    with pytest.raises(ValueError, match="expand must be a whole number of at least 2"):
        WaveMixer(8, 1)
    with pytest.raises(ValueError, match="an entry for each stage"):
        SpaRTAN((1, 8, 8), dims=(8,))
