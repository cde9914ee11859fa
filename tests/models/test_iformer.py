"""IFormer: the network of Inception mixers on images."""

import pytest
import torch

from logitkit.layers import InceptionMixer, ramp
from logitkit.models import IFormer


def test_attention_gets_more_with_depth():
    assert ramp(4, 0.25, 1.0) == [0.25, 0.5, 0.75, 1.0]
    model = IFormer((3, 24, 20), dims=(16, 32), depths=(1, 2), heads=(4, 8))
    mixers = [m for m in model.modules() if isinstance(m, InceptionMixer)]
    assert [(m.dim, m.attn_heads, m.pool) for m in mixers] == [(16, 1, 2), (32, 7, 1), (32, 7, 1)]
    assert model.forward_features(torch.randn(2, 3, 24, 20)).shape == (2, 30, 32)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dim": 10, "heads": 4}, "heads must divide dim"),
        ({"dim": 8, "heads": 2, "attn_heads": 3}, "attn_heads lie in"),
        ({"dim": 6, "heads": 2, "attn_heads": 1}, "even number of channels.* got 3 of 6"),
    ],
)
def test_bad_sizes(settings, match):
    with pytest.raises(ValueError, match=match):
        InceptionMixer(grid=(2, 2), **settings)
    with pytest.raises(ValueError, match="same stages"):
        IFormer((1, 8, 8), dims=(16,))
    with pytest.raises(ValueError, match="shares must rise"):
        ramp(3, 0.5, 0.2)
