import torch
from torch import nn
from torch.nn import functional as F

from logitkit.robust import FGSM


def test_fgsm_is_one_signed_step():
    model, x, y = nn.Linear(6, 3), torch.randn(5, 6, requires_grad=True), torch.tensor([0, 1, 2, 0, 1])
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    torch.testing.assert_close(FGSM(0.1)(model, x, y), x + 0.1 * gradient.sign())
    boxed = FGSM(0.1, clamp=(-0.2, 0.2))(model, x, y)
    torch.testing.assert_close(boxed, (x + 0.1 * gradient.sign()).clamp(-0.2, 0.2))
