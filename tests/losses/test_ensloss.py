import copy

import pytest
import torch

from logitkit.losses import EnsLoss, inverse_box_cox, random_calibrated_derivative


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_value_and_gradient_of_the_official_code():
    """ensLoss of github.com/statmlben/ensLoss on these outputs after torch.manual_seed(3), two lam."""
    f = torch.tensor([0.3, -2.0, 1.7, 0.9, 4.0], requires_grad=True)
    y = torch.tensor([1, 0, 1, 0, 1])
    for lam, value, last in ((0.0, -0.3882683218, -0.0270669218), (-0.5, -0.3971056342, -0.0292762518)):
        part = EnsLoss()
        part.lam.fill_(lam)
        torch.manual_seed(3)
        loss = part(torch.stack([torch.zeros(5), f], dim=1), y)
        (gradient,) = torch.autograd.grad(loss, f)
        assert loss.item() == pytest.approx(value, abs=1e-6)
        expected = torch.tensor([-0.2000002, 0.1000002, -0.117647253, 0.2000002, last])
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lam", [0.0, 0.7, -0.7])
def test_every_draw_is_the_derivative_of_a_calibrated_loss(lam):
    g = generator()
    for _ in range(100):
        z = torch.randn(20, generator=g).sort().values
        d = random_calibrated_derivative(z, lam, g)
        assert (d < 0).all()
        assert (d >= -1 - 2e-6).all()
        assert (d[z <= 1].diff() >= 0).all()
        heights = torch.cumulative_trapezoid(d[z <= 1], z[z <= 1])
        assert (heights.diff() <= 0).all()


def test_derivatives_are_the_sorted_draws_with_a_tail():
    z = torch.tensor([0.5, -1.0, 4.0, 0.2])
    r = (-inverse_box_cox(torch.randn(4, generator=generator()), 0.3).clamp(max=1)).sort().values
    expected = torch.stack([r[2], r[0], r[3] / 4, r[1]]) - 1e-6
    torch.testing.assert_close(random_calibrated_derivative(z, 0.3, generator()), expected)


def test_gradient_is_g_times_y_over_the_batch_for_each_scorer():
    logits = torch.randn(7, 4, requires_grad=True)
    y = torch.randint(0, 4, (7,))
    signs = torch.where(torch.arange(4) == y[:, None], 1.0, -1.0)
    g = random_calibrated_derivative(signs * logits, 0.0, generator())
    (gradient,) = torch.autograd.grad(EnsLoss(generator=generator())(logits, y), logits)
    torch.testing.assert_close(gradient, g * signs / 7)


def test_ignored_rows_take_no_draw():
    """The kept rows get the draws in order, whatever the margins of the ignored ones."""
    kept = torch.tensor([True, False, True, False, True])
    r = -torch.randn(5, generator=generator()).exp().clamp(max=1)
    for ignored in (-9.0, 9.0):
        z = torch.tensor([0.3, ignored, -0.2, ignored, 0.9])
        d = random_calibrated_derivative(z, 0.0, generator(), kept)
        torch.testing.assert_close(d[[2, 0, 4]], r[kept].sort().values - 1e-6)


def test_inverse_box_cox():
    u = torch.tensor([-3.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(inverse_box_cox(u, 1e-7), u.exp(), rtol=1e-5, atol=0)
    torch.testing.assert_close(inverse_box_cox(u, 0.5), (1 + 0.5 * u).clamp(min=0) ** 2)
    assert inverse_box_cox(torch.tensor([2.0]), -0.5).item() == float("inf")


def test_lam_is_drawn_as_every_period_th_epoch_begins():
    part = EnsLoss(period=3, num_samples=8, generator=generator())
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    lams = []
    for _ in range(7):
        lams.append(part.lam.item())  # of the epoch that begins
        part(logits, y), part(logits, y)
        part.eval()(logits, y)
        part.train()
    first, second = lams[2], lams[5]
    assert lams == [0, 0, first, first, first, second, second]
    assert first != 0
    assert second != first


def test_lam_is_uniform_on_minus_one_to_one():
    part = EnsLoss(period=1, num_samples=1, generator=generator())
    lams = []
    for _ in range(60):
        part(torch.zeros(1, 3), torch.tensor([0]))
        lams.append(part.lam.item())
    assert -1 <= min(lams) < -0.9
    assert 0.9 < max(lams) <= 1


def test_resumes_from_its_state_dict():
    part = EnsLoss(period=1, num_samples=4, generator=generator(5))
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    part(logits, y)
    other = EnsLoss(period=1, num_samples=4, generator=generator(9))
    other.load_state_dict(copy.deepcopy(part.state_dict()))
    for _ in range(3):
        assert part(logits, y) == other(logits, y)


def test_its_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    EnsLoss(generator=generator())(torch.randn(4, 3, generator=generator()), torch.tensor([0, 1, 2, 0]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_period_needs_to_know_an_epoch():
    with pytest.raises(ValueError, match=r"period=10 .* num_samples"):
        EnsLoss(period=10)
    with pytest.raises(ValueError, match="period must be positive, got 0"):
        EnsLoss(period=0, num_samples=5)
