"""The multilayer perceptron against its equation written out."""

import pytest
import torch

from logitkit.models import MLP


def test_it_is_the_equation():
    model, x = MLP((2, 3), hidden=(7, 5)).double(), torch.randn(4, 2, 3, dtype=torch.float64)
    first, second = model.layers[0], model.layers[2]
    h = (x.reshape(4, 6) @ first.weight.T + first.bias).clamp(min=0)
    h = (h @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h)
    assert model.out_features == 5


def test_defaults_and_dropout_in_training_only():
    assert MLP((6,)).out_features == 128
    model, x = MLP((6,), dropout=0.5), torch.randn(3, 6)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("bad", [{"hidden": ()}, {"hidden": (4, 0)}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MLP((6,), **bad)
