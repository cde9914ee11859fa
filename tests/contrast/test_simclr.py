"""SimCLR's loss against a loop, and where all vectors coincide."""

import math

import pytest
import torch

from logitkit.contrast import SimCLRLoss


def test_loop_over_plain_floats():
    views = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.nn.functional.normalize(views.flatten(0, 1), dim=1)
    s = (z @ z.T / 0.2).tolist()
    terms = [
        math.log(sum(math.exp(s[i][j]) for j in range(10) if j != i)) - s[i][(i + 5) % 10] for i in range(10)
    ]
    assert SimCLRLoss(0.2)(views).item() == pytest.approx(sum(terms) / 10)


def test_vectors_that_coincide_give_the_log_of_the_others():
    assert SimCLRLoss()(torch.ones(2, 8, 4)).item() == pytest.approx(math.log(15), abs=1e-6)


def test_three_views_are_refused():
    with pytest.raises(ValueError, match=r"\(2, batch, d\).*got \(3, 4, 5\)"):
        SimCLRLoss()(torch.randn(3, 4, 5))
