import torch

from logitkit.losses import MSE


def test_equals_torch():
    output, target = torch.randn(2, 9, dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        expected = torch.nn.functional.mse_loss(output, target, reduction=reduction)
        torch.testing.assert_close(MSE(reduction=reduction)(output, target), expected)
