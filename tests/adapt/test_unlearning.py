"""Baselines of unlearning by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.adapt import GradientAscent, dpo, grad_diff, gradient_ascent, npo

G = torch.Generator().manual_seed(0)
LOGITS, OTHER, REFERENCE, OTHER_REFERENCE = torch.randn(4, 2, 3, 5, generator=G, dtype=torch.float64)
LABELS = torch.tensor([[-100, 3, 1], [-100, -100, 2]])
OTHERS = torch.tensor([[0, 4, -100], [1, 2, 3]])


def log_p(logits, labels):
    """Log-probability of each answer, in plain floats."""
    return [
        sum(math.log(torch.softmax(row, 0)[y]) for row, y in zip(rows, ys, strict=True) if y >= 0)
        for rows, ys in zip(logits, labels.tolist(), strict=True)
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_gradient_ascent_and_difference():
    ascent = sum(log_p(LOGITS, LABELS)) / 3
    assert gradient_ascent(LOGITS, LABELS).item() == pytest.approx(ascent)
    retain = F.cross_entropy(OTHER.flatten(0, 1), OTHERS.flatten()).item()
    assert grad_diff(LOGITS, LABELS, OTHER, OTHERS).item() == pytest.approx(ascent + retain)


def test_preferences():
    ratio = [a - b for a, b in zip(log_p(LOGITS, LABELS), log_p(REFERENCE, LABELS), strict=True)]
    better = [a - b for a, b in zip(log_p(OTHER, OTHERS), log_p(OTHER_REFERENCE, OTHERS), strict=True)]
    expected = -(2 / 0.3) * sum(math.log(sigmoid(-0.3 * r)) for r in ratio) / 2
    assert npo(LOGITS, LABELS, REFERENCE, beta=0.3).item() == pytest.approx(expected)
    expected = -sum(math.log(sigmoid(0.3 * (b - r))) for b, r in zip(better, ratio, strict=True)) / 2
    found = dpo(LOGITS, LABELS, REFERENCE, OTHER, OTHERS, OTHER_REFERENCE, beta=0.3)
    assert found.item() == pytest.approx(expected)


def test_npo_with_a_small_beta_is_gradient_ascent_on_answers():
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(npo(logits, LABELS, REFERENCE, beta=1e-6), logits)
    (ascent,) = torch.autograd.grad(gradient_ascent(logits, LABELS) * 3 / 2, logits)
    torch.testing.assert_close(found, ascent, rtol=1e-4, atol=1e-9)


def test_refuses_a_beta_of_zero():
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        npo(LOGITS, LABELS, REFERENCE, beta=0)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"lr": 0}, "lr must be positive, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"stop": 5}, r"stop must lie in \[0, 1\] or be None, got 5"),
    ],
)
def test_refuses_a_budget_that_is_none(budget, says):
    with pytest.raises(ValueError, match=says):
        GradientAscent(**budget)
