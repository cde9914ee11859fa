"""ConViT: the network of gated positional attention on images."""

import pytest
import torch

from logitkit.models import ConViT


def test_the_class_token_joins_after_the_local_layers():
    model = ConViT((1, 8, 8), patch=2, dim=8).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    tokens = model.local(model.patches(x).flatten(2).mT + model.position)
    assert tokens.shape == (2, 16, 8)
    whole = torch.cat([model.class_token.expand(2, 1, 8), tokens], 1)
    map = model.norm(model.blocks(whole))
    torch.testing.assert_close(model.forward_features(x), map)
    torch.testing.assert_close(model(x), map[:, 0])
    with pytest.raises(ValueError, match="got 0 and 1"):
        ConViT((1, 8, 8), gpsa_layers=0)
