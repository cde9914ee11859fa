"""Negative preference optimisation as a part: its value where nothing has moved, and how it slows down."""

import math

import pytest
import torch

from logitkit.adapt import NPO

LABELS = torch.tensor([[-100, 3], [2, 1]])


def test_where_nothing_has_moved_it_is_two_log_two_over_beta():
    logits = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    assert NPO(beta=0.5)(logits, LABELS, logits).item() == pytest.approx(4 * math.log(2))


def test_an_answer_that_is_forgotten_already_is_left_alone():
    """The gradient is that of log p, times 2 sigmoid(beta log(p / p_ref))."""
    pushed = []
    for shift in (0.0, -50.0):
        logits = torch.zeros(1, 1, 4, dtype=torch.float64)
        logits[..., 0] = shift
        logits.requires_grad_()
        loss = NPO(beta=0.2)(logits, torch.zeros(1, 1).long(), torch.zeros(1, 1, 4).double())
        pushed.append(torch.autograd.grad(loss, logits)[0][0, 0, 0].item())
    ratio = -50 - math.log(3) + math.log(4)  # log p / p_ref, as exp(-50) does not count in the sum
    assert pushed[0] == pytest.approx(0.75)
    assert pushed[1] == pytest.approx(2 / (1 + math.exp(-0.2 * ratio)))


def test_refuses_a_beta_of_zero():
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        NPO(beta=0)
