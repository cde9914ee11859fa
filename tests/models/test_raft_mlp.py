"""RaftMLP: the network on images."""

import pytest
import torch

from logitkit.layers import MultiScaleEmbed, RaftTokenMixer
from logitkit.models import RaftMLP


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 17), (1, 32, 32)])
def test_backbone(shape):
    model, x = RaftMLP(shape), torch.randn(2, *shape)
    map = model.forward_features(x)
    assert map.shape[2] == model.out_features == 64
    torch.testing.assert_close(model(x), map.mean(1))


def test_bad_settings():
    with pytest.raises(ValueError, match="raft must divide dim, got raft 3 and dim 8"):
        RaftTokenMixer(8, (2, 2), raft=3)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 4, dim\), got \(2, 5, 8\)"):
        RaftTokenMixer(8, (2, 2))(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match="kernels must be multiples of 2 with one centre"):
        MultiScaleEmbed(1, 4, (2, 5))
    with pytest.raises(ValueError, match="an entry for each level"):
        RaftMLP((1, 8, 8), dims=(8,))
