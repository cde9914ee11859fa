"""Direct preference optimisation as a part, on answers of one token."""

import math

import pytest
import torch

from logitkit.adapt import DPO


def test_the_log_odds_of_template_over_answer_count():
    """One token each: the margin is the change of log p_template - log p_answer, here of the logits alone."""
    before, after = torch.tensor([[[1.0, 2.0, 0.5]]]), torch.tensor([[[0.2, 2.5, 1.0]]])
    answer, template = torch.tensor([[1]]), torch.tensor([[2]])
    margin = (1.0 - 2.5) - (0.5 - 2.0)
    assert margin == pytest.approx(0.0)
    found = DPO(beta=0.7)(after, answer, after, template, before, before)
    assert found.item() == pytest.approx(math.log(2))
    after = after + torch.tensor([0.0, -1.0, 2.0])
    found = DPO(beta=0.7)(after, answer, after, template, forget_reference=before, template_reference=before)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-0.7 * 3.0)))


def test_refuses_a_beta_of_zero():
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        DPO(beta=0)
