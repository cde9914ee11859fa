"""The cosine head: angles, margins, and when the margin acts."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.heads import CosineHead


def angles(head, x):
    return torch.arccos(F.cosine_similarity(x[:, None], head.weight, dim=-1))


def test_plain_logits_are_scaled_cosines_at_any_length():
    head, x = CosineHead(6, 4, scale=10.0).double(), torch.randn(5, 6, dtype=torch.float64)
    expected = 10 * torch.cos(angles(head, x))
    for length in (1e-200, 1.0, 1e200):
        torch.testing.assert_close(head(length * x), expected)


@pytest.mark.parametrize(
    ("margin_type", "margin", "moved"),
    [("cosface", 0.35, lambda t: torch.cos(t) - 0.35), ("arcface", 0.5, lambda t: torch.cos(t + 0.5))],
)
def test_the_margin_moves_the_labels_score_in_training_only(margin_type, margin, moved):
    torch.manual_seed(0)
    head = CosineHead(6, 4, 30.0, margin, margin_type).double()
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    theta = angles(head, x)
    assert theta.max() < math.pi - 0.5
    label = F.one_hot(y, 4).bool()
    torch.testing.assert_close(head(x, target=y), 30 * torch.where(label, moved(theta), torch.cos(theta)))
    torch.testing.assert_close(head(x), 30 * torch.cos(theta))
    torch.testing.assert_close(head.eval()(x, target=y), 30 * torch.cos(theta))


def test_arcface_keeps_falling_beyond_pi_minus_margin():
    head = CosineHead(2, 2, 1.0, 0.5, "arcface").double()
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    theta = torch.linspace(0.01, math.pi - 0.01, 300, dtype=torch.float64)
    x = torch.stack([theta.cos(), theta.sin()], dim=1)
    score = head(x, target=torch.zeros(300, dtype=torch.long))[:, 0]
    assert (score.diff() < 0).all()
    late = theta > math.pi - 0.5
    torch.testing.assert_close(score[late], theta[late].cos() - 0.5 * math.sin(0.5))
    torch.testing.assert_close(score[~late], (theta[~late] + 0.5).cos())


@pytest.mark.parametrize("margin_type", ["cosface", "arcface"])
def test_gradients_are_finite_at_the_class_direction_and_at_zero(margin_type):
    head = CosineHead(4, 3, margin_type=margin_type)
    x = torch.stack([head.weight[0].detach(), -head.weight[1].detach(), torch.zeros(4), 1e4 * torch.ones(4)])
    x.requires_grad_()
    out = head(x, target=torch.tensor([0, 1, 2, 0]))
    F.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize(
    "bad", [{"scale": 0.0}, {"margin": -0.1}, {"margin": 1.6, "margin_type": "arcface"}, {"margin_type": "x"}]
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match="|".join(bad)):
        CosineHead(4, 3, **bad)


def test_label_out_of_range():
    with pytest.raises(ValueError, match="label 3"):
        CosineHead(4, 3)(torch.randn(2, 4), target=torch.tensor([0, 3]))
