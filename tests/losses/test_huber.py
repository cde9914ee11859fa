import pytest
import torch

from logitkit.losses import Huber


def test_quadratic_near_and_linear_beyond():
    error = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    expected = torch.tensor([1.5 * (3 - 0.75), 0.125, 0.0, 0.125, 1.5 * (3 - 0.75)])
    torch.testing.assert_close(Huber(1.5, reduction="none")(error, torch.zeros(5)), expected)


def test_is_delta_times_smooth_l1():
    output, target = 3 * torch.randn(2, 50)
    smooth_l1 = torch.nn.SmoothL1Loss(beta=0.7)(output, target)
    torch.testing.assert_close(Huber(0.7)(output, target), 0.7 * smooth_l1)


def test_refuses_a_delta_that_is_not_positive():
    with pytest.raises(ValueError, match="delta must be positive, got 0"):
        Huber(0)
