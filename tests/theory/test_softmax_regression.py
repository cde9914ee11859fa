"""Softmax regression against autograd, and the two ways in which it can be shifted."""

import math

import pytest
import torch

from logitkit.theory import (
    SoftmaxRegression,
    data_shift_bounds,
    data_step,
    equivalent_data_shift,
    softmax_regression_gradient,
    softmax_regression_hessian,
    softmax_regression_loss,
    softmax_response,
    target_shift,
    weight_shift_bounds,
    weight_step,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n=8, d=5, seed=0):
    """A, x and a target that is no probability vector."""
    return draw(n, d, seed=seed), draw(d, seed=seed + 1), draw(n, seed=seed + 2)


def plain_loss(a, x, b):
    """In plain floats."""
    scores = [math.exp(sum(p * q for p, q in zip(row, x, strict=True))) for row in a]
    return sum((s / sum(scores) - t) ** 2 for s, t in zip(scores, b, strict=True)) / 2


def test_loss_is_that_of_plain_floats():
    a, x, b = problem()
    expected = plain_loss(a.tolist(), x.tolist(), b.tolist())
    assert softmax_regression_loss(a, x, b).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_and_hessian_are_those_of_autograd():
    def loss(a, x, b):
        return (torch.exp(a @ x) / torch.exp(a @ x).sum() - b).square().sum() / 2

    for seed in range(5):
        a, x, b = problem(seed=seed)
        slope = torch.autograd.functional.jacobian(lambda v, a=a, b=b: loss(a, v, b), x)
        curve = torch.autograd.functional.hessian(lambda v, a=a, b=b: loss(a, v, b), x)
        by_data = torch.autograd.functional.jacobian(lambda m, x=x, b=b: loss(m, x, b), a)
        torch.testing.assert_close(softmax_regression_gradient(a, x, b), slope, rtol=0, atol=1e-9)
        torch.testing.assert_close(softmax_regression_hessian(a, x, b), curve, rtol=0, atol=1e-9)
        torch.testing.assert_close(weight_step(a, x, b, 0.3), x - 0.3 * slope, rtol=0, atol=1e-9)
        torch.testing.assert_close(data_step(a, x, b, 0.3), a - 0.3 * by_data, rtol=0, atol=1e-9)


def test_leading_dimensions_are_problems_of_their_own():
    several = [problem(seed=seed) for seed in range(3)]
    a, x, b = (torch.stack(each) for each in zip(*several, strict=True))
    x_new = weight_step(a, x, b, 0.1)
    for f in (softmax_regression_loss, softmax_regression_gradient, softmax_regression_hessian):
        torch.testing.assert_close(f(a, x, b), torch.stack([f(*each) for each in several]))
    found = weight_shift_bounds(a, x, x_new)
    alone = weight_shift_bounds(a[1], x[1], x_new[1])
    torch.testing.assert_close([each[1] for each in found], list(alone))


def test_a_shift_of_the_target_has_the_loss_of_the_step():
    for seed in range(10):
        a, x, b = problem(seed=seed)
        x_new, a_new = x + draw(5, seed=seed + 50), a + draw(8, 5, seed=seed + 60)
        old = softmax_response(a, x)
        for new in (softmax_response(a, x_new), softmax_response(a_new, x)):
            shifted = softmax_regression_loss(a, x, b + target_shift(old, new))
            assert abs(shifted.item() - (new - b).square().sum().item() / 2) < 1e-12


def test_every_weight_shift_has_a_data_shift_of_rank_one():
    for seed in range(10):
        a, x, _ = problem(seed=seed)
        x_new = x + draw(5, seed=seed + 50)
        shift = equivalent_data_shift(a, x, x_new)
        found, expected = softmax_response(a + shift, x), softmax_response(a, x_new)
        assert (found - expected).abs().max() < 1e-12
        assert torch.linalg.matrix_rank(shift).item() == 1
        assert shift.norm() <= a.norm() * (x_new - x).norm() / x.norm()
    with pytest.raises(ValueError, match="x must not be 0"):
        equivalent_data_shift(a, torch.zeros_like(x), x)


def test_shifts_stay_below_both_bounds():
    a, x = draw(1000, 6, 4) * draw(1000, 1, 1).exp(), draw(1000, 4, seed=1)
    x_new = x + draw(1000, 4, seed=2) * draw(1000, 1, seed=3).exp()
    a_new = a + draw(1000, 6, 4, seed=4) * draw(1000, 1, 1, seed=5).exp()
    by_weight, by_data = weight_shift_bounds(a, x, x_new), data_shift_bounds(a, a_new, x)
    for found, change in ((by_weight, (a @ (x_new - x)[..., None])), (by_data, (a_new - a) @ x[..., None])):
        assert (found.shift <= found.sharp + 1e-15).all()
        assert (found.shift <= change[..., 0].norm(dim=1) / 2 + 1e-15).all()
        assert (found.sharp.log() <= found.log_paper).all()
    # with scores -t and t at t = 0 the Jacobian's norm is 1/2, so small steps reach the sharp bound
    tight = weight_shift_bounds(torch.tensor([[-1.0], [1.0]]).double(), torch.zeros(1).double(),
                                torch.full((1,), 1e-4).double())  # fmt: skip
    assert (tight.shift / tight.sharp).item() == pytest.approx(1, abs=1e-6)


def test_the_papers_bound_by_hand():
    a, x = torch.eye(3).double(), torch.tensor([2.0, 0.0, 0.0]).double()
    found = weight_shift_bounds(a, x, torch.zeros(3).double())
    assert found.log_paper.item() == pytest.approx(math.log(3**1.5 * 2) + 10 * 2**2)
    assert found.sharp.item() == pytest.approx(1.0)
    share = math.exp(2) / (math.exp(2) + 2)
    expected = math.hypot(share - 1 / 3, *[1 / (math.exp(2) + 2) - 1 / 3] * 2)
    assert found.shift.item() == pytest.approx(expected)


def test_large_scores_stay_finite():
    a = torch.tensor([[1e4], [-1e4], [0.0]]).double()
    x, b = torch.ones(1).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    assert softmax_response(a, x).tolist() == [1.0, 0.0, 0.0]
    assert softmax_regression_gradient(a, x, b).isfinite().all()
    assert softmax_regression_hessian(a, x, b).isfinite().all()


def test_fit_finds_the_weights_that_made_the_target():
    a, x, _ = problem(n=30)
    model = SoftmaxRegression().fit(a, softmax_response(a, x))
    torch.testing.assert_close(model.coefficient, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.predict(a), softmax_response(a, x), rtol=0, atol=1e-9)


def test_fit_of_any_target_ends_at_a_minimum():
    a, x, _ = problem(n=30)
    b = softmax_response(a, x) + 0.02 * draw(30, seed=9)
    found = SoftmaxRegression().fit(a, b).coefficient
    assert softmax_regression_gradient(a, found, b).norm() < 1e-7
    assert torch.linalg.eigvalsh(softmax_regression_hessian(a, found, b)).min() > 0


def test_order_of_calls():
    with pytest.raises(ValueError, match=r"must be fitted before it sees rows \(8, 5\)"):
        SoftmaxRegression().predict(problem()[0])
