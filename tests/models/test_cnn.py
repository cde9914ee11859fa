"""The convolutional network: shapes, size, and what a convolution must respect."""

import pytest
import torch

from logitkit.models import CNN


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (4, 28, 28), (3, 64, 64), (2, 9, 17), (1, 1, 1)])
def test_shapes_and_size(shape):
    model, x = CNN(shape), torch.randn(2, *shape)
    map = model.forward_features(x)
    assert map.shape[:2] == (2, model.out_features)
    torch.testing.assert_close(model(x), map.flatten(2).mean(-1))
    assert sum(p.numel() for p in model.parameters()) < 100_000


def test_it_follows_a_shift_and_sees_the_neighbourhood():
    model = CNN((1, 64, 64)).double()
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[..., 24:28, 24:28] = torch.randn(4, 4)
    here, there = model.forward_features(x), model.forward_features(x.roll((16, 16), (2, 3)))
    torch.testing.assert_close(here[..., 3, 3], there[..., 5, 5])  # 8 pixels are one cell of the 8x8 map
    assert not torch.allclose(here[..., 2, 2], model.forward_features(0 * x)[..., 2, 2])


def test_a_row_does_not_depend_on_its_batch():
    model, x = CNN((3, 12, 12)), torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.parametrize("bad", [{"width": 0}, {"width": 12}])
def test_bad_width(bad):
    with pytest.raises(ValueError, match="width"):
        CNN((1, 8, 8), **bad)


def test_vectors_are_sent_to_mlp():
    with pytest.raises(ValueError, match="mlp and linear read any shape"):
        CNN((64,))
