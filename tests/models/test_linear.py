"""The identity backbone."""

import pytest
import torch

from logitkit.models import LinearModel


def test_it_flattens_in_row_major_order_and_holds_no_weights():
    model, x = LinearModel((2, 3, 4)), torch.randn(5, 2, 3, 4)
    assert torch.equal(model(x), x.reshape(5, 24))
    assert model.out_features == 24
    assert not list(model.parameters())


@pytest.mark.parametrize("shape", [(), (0,), (3, -1), (2.0,)])
def test_bad_input_shape(shape):
    with pytest.raises(ValueError, match="input_shape"):
        LinearModel(shape)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), r"\(batch, 4\), got \(2, 5\)"),
        (torch.zeros(2, 4, 1), r"\(batch, 4\)"),
        (torch.zeros(2, 4, dtype=torch.long), "floating point"),
        (torch.zeros(0, 4), "empty batch"),
        (torch.full((2, 4), torch.nan), "NaN"),
    ],
)
def test_bad_input(x, message):
    with pytest.raises(ValueError, match=message):
        LinearModel((4,))(x)
