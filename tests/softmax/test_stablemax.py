"""StableMax: the definition, the authors' numbers, and the collapse it avoids."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.softmax import StableMax, collapse_fraction, log_stablemax, stablemax


def definition(x):
    s = torch.where(x >= 0, x.clamp(min=0) + 1, 1 / (1 - x.clamp(max=0)))
    return s / s.sum(-1, keepdim=True)


def test_it_is_the_definition():
    x = 5 * torch.randn(20, 7, dtype=torch.float64)
    torch.testing.assert_close(stablemax(x), definition(x))
    torch.testing.assert_close(StableMax(dim=0)(x), definition(x.T).T)
    torch.testing.assert_close(StableMax().log(x), definition(x).log())


def test_values_of_the_authors_code():
    # log_stablemax and stablemax_cross_entropy of LucasPrietoAl/grokking-at-the-edge-of-numerical-stability,
    # utils.py at 0cc9e8d, run on these logits in float64.
    x = torch.tensor([[3.0, -1.5, 0.0, 0.25], [-2.0, 1.0, 12.0, -0.5]], dtype=torch.float64)
    official = [
        [-0.508322493548, -2.810907586542, -1.894616854668, -1.671473303354],
        [-3.871201010908, -2.079441541680, -0.207639364778, -3.178053830348],
    ]
    got = log_stablemax(x)
    torch.testing.assert_close(got, torch.tensor(official, dtype=torch.float64), rtol=0, atol=1e-11)
    assert F.nll_loss(got, torch.tensor([0, 3])).item() == pytest.approx(1.843188161948, abs=1e-11)


def test_growth_has_slope_one_on_both_sides_of_zero():
    for value in (0.0, -1e-12, 1e-12):
        x = torch.tensor([value, 0.0], dtype=torch.float64, requires_grad=True)
        log_stablemax(x)[0].backward()
        assert x.grad[0].item() == pytest.approx(0.5)  # (1 - p) s'/s with p = 1/2 and s = 1


def test_gradient_is_finite_where_a_branch_is_singular():
    x = torch.tensor([[1.0, -1.0, 1e4, -1e4, 0.0]], requires_grad=True)
    log_stablemax(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(log_stablemax(x)).all()


def test_it_still_learns_where_float32_softmax_has_collapsed():
    logits = torch.zeros(1, 10)
    logits[0, 3] = 30.0
    y = torch.tensor([3])
    assert collapse_fraction(logits, y) == 1
    plain = logits.clone().requires_grad_()
    loss = F.cross_entropy(plain, y)
    loss.backward()
    assert loss == 0
    assert plain.grad[0, 3] == 0
    assert plain.grad[0, [0, 1, 2, 4]].abs().max() < 1e-12
    stable = logits.clone().requires_grad_()
    loss = F.nll_loss(log_stablemax(stable), y)
    loss.backward()
    assert loss > 1e-3
    assert stable.grad.abs().min() > 1e-3


def test_collapse_fraction_counts_labels_only_and_depends_on_precision():
    logits = torch.tensor([[20.0, 0.0], [20.0, 0.0], [12.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0])
    assert collapse_fraction(logits, y).item() == pytest.approx(1 / 3)
    assert collapse_fraction(logits, y, torch.float64) == 0
    assert collapse_fraction(logits, y, torch.float16).item() == pytest.approx(2 / 3)
