"""Softmax with temperature, against torch and by hand."""

import pytest
import torch

from logitkit.softmax import Softmax, softmax


def test_it_is_torchs_softmax_of_scores_over_temperature():
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(softmax(x, 1, 2.0), torch.softmax(x / 2, 1))
    torch.testing.assert_close(Softmax(dim=1, temperature=2.0)(x), torch.softmax(x / 2, 1))
    torch.testing.assert_close(Softmax(0, 0.5).log(x), torch.log_softmax(2 * x, 0))


def test_half_precision_weights_keep_their_dtype_and_log_weights_are_float32():
    x = torch.randn(4, 6).bfloat16()
    assert Softmax()(x).dtype == torch.bfloat16
    assert Softmax().log(x).dtype == torch.float32
    torch.testing.assert_close(Softmax().log(x), x.float().log_softmax(-1))


def test_masked_and_extreme_scores():
    x = torch.tensor([[0.0, -torch.inf, 1e4, -1e4]], requires_grad=True)
    assert Softmax()(x).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    Softmax().log(x)[0, 2].backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("x", "dim", "message"),
    [
        (torch.zeros(2, 3), 2, "no axis 2"),
        (torch.zeros(2, 0), -1, "empty"),
        (torch.zeros(2, 3).long(), -1, "floating point, got torch.int64"),
        (torch.full((2, 3), torch.nan), -1, "NaN"),
    ],
)
def test_bad_scores(x, dim, message):
    with pytest.raises(ValueError, match=message):
        Softmax(dim)(x)


def test_bad_temperature():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        Softmax(temperature=0.0)
