"""CSWin: the network on images: shapes, and the number of weights in the paper's table."""

import pytest
import torch

from logitkit.models import CSWin


@pytest.mark.parametrize(("shape", "tokens"), [((1, 8, 8), 16), ((3, 33, 20), 45), ((2, 3, 3), 4)])
def test_the_backbone_halves_the_grid_and_doubles_the_features(shape, tokens):
    model, x = CSWin(shape, dim=8), torch.randn(2, *shape)
    assert model.forward_features(x).shape == (2, tokens, 16)
    assert model.out_features == 16


def test_stages_as_in_the_paper():
    """CSWin-T has 23 million weights, of which a head for 1,000 classes has 513,000 (its table 1)."""
    with torch.device("meta"):
        model = CSWin(
            (3, 224, 224), dim=64, depths=(1, 2, 21, 1), heads=(2, 4, 8, 16), stripes=(1, 2, 7, 7), patch=4
        )
    weights = sum(p.numel() for p in model.parameters()) + 513_000
    assert 22.0e6 < weights < 23.5e6
    with pytest.raises(ValueError, match="same stages"):
        CSWin((1, 8, 8), depths=(1,))
