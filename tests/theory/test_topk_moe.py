"""The sparse mixture against dense gating, loops over plain floats, and the constructions of the theorems."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from logitkit.theory import (
    Parameters,
    TopKMoE,
    convergence_slope,
    em_step,
    hellinger,
    rate_experiment,
    topk_log_gate,
    voronoi_cells,
    voronoi_loss,
)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random(k=4, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = ((k, d), (k,), (k, d), (k,))
    first = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    return Parameters(*first, 0.2 + torch.rand(k, generator=g, dtype=torch.float64))


def rows(n=200, d=3, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gate_by_hand_ignores_the_bias_in_the_selection():
    x, weight, bias = tensor([[1.0]]), tensor([[3.0], [2.0], [1.0]]), tensor([-50.0, 0.0, 100.0])
    found = topk_log_gate(x, weight, bias, 2).exp()[0]
    total = math.exp(3 - 50) + math.exp(2)
    torch.testing.assert_close(found, tensor([math.exp(3 - 50) / total, math.exp(2) / total, 0.0]))


@pytest.mark.parametrize("active", [1, 2, 3, 4])
def test_exactly_k_experts_count_and_all_is_dense(active):
    p, x = random(), rows()
    gate = topk_log_gate(x, p.gate_weight, p.gate_bias, active).exp()
    assert ((gate > 0).sum(1) == active).all()
    torch.testing.assert_close(gate.sum(1), torch.ones(200, dtype=torch.float64))
    if active == 4:
        torch.testing.assert_close(gate, (x @ p.gate_weight.T + p.gate_bias).softmax(1))


def test_a_common_shift_of_the_gates_changes_nothing():
    p, x = random(), rows()
    moved = topk_log_gate(x, p.gate_weight + rows(1, seed=5), p.gate_bias + 7.0, 2)
    torch.testing.assert_close(moved, topk_log_gate(x, p.gate_weight, p.gate_bias, 2))


def test_density_is_that_of_loops_and_integrates_to_one():
    p, x = random(), rows(5)
    model = TopKMoE.of(p, active=2)
    for row in x:
        v = [float(row @ w) for w in p.gate_weight]
        kept = sorted(range(4), key=lambda i: -v[i])[:2]
        odds = {i: math.exp(v[i] + float(p.gate_bias[i])) for i in kept}

        def density(y, row=row, odds=odds):
            return sum(
                odds[i] / sum(odds.values())
                * norm.pdf(y, float(row @ p.slope[i] + p.intercept[i]), math.sqrt(p.variance[i]))
                for i in odds
            )  # fmt: skip

        assert model.log_prob(row[None], tensor([0.3])).exp().item() == pytest.approx(density(0.3))
        assert quad(density, -40, 40, points=[-5, 0, 5])[0] == pytest.approx(1, abs=1e-6)
        mean = quad(lambda y: y * density(y), -40, 40, points=[-5, 0, 5])[0]
        assert model.predict(row[None]).item() == pytest.approx(mean, abs=1e-6)


def test_samples_follow_the_density():
    p = random(3, 1)
    model, x = TopKMoE.of(p, active=2), tensor([[0.7]]).expand(200_000, 1)
    y = model.sample(x, torch.Generator().manual_seed(0))
    assert y.mean().item() == pytest.approx(model.predict(x[:1]).item(), abs=0.01)
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    cdf = model.log_prob(x[:2001], grid).exp().cumsum(0) * 0.006
    empirical = torch.searchsorted(y.sort().values, grid) / len(y)
    assert (cdf - empirical).abs().max() < 0.01


@pytest.mark.parametrize(("k", "active", "d"), [(2, 2, 1), (3, 3, 2), (4, 2, 3), (3, 1, 2)])
def test_em_never_lowers_the_likelihood(k, active, d):
    truth = random(k, d)
    x = rows(400, d)
    y = TopKMoE.of(truth, active).sample(x, torch.Generator().manual_seed(0))
    p = random(k, d, seed=3)
    reached = [TopKMoE.of(p, active).log_prob(x, y).mean().item()]
    for _ in range(30):
        p, value = em_step(x, y, p, active)
        assert value == pytest.approx(TopKMoE.of(p, active).log_prob(x, y).mean().item())
        reached.append(value)
    assert (np.diff(reached) >= 0).all()
    assert reached[-1] > reached[0] + 0.1


def test_a_fit_is_no_worse_than_the_truth_and_finds_it():
    truth = Parameters(tensor([[2.0], [0.0]]), tensor([0.3, 0.0]), tensor([[-2.0], [2.0]]),
                       tensor([1.0, -1.0]), tensor([0.09, 0.16]))  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(4000, 1, generator=g, dtype=torch.float64) - 1
    model = TopKMoE.of(truth)
    y = model.sample(x, g)
    fit = TopKMoE(2).fit(x, y)
    assert fit.log_prob(x, y).mean() >= model.log_prob(x, y).mean()
    found = fit.parameters_
    order = found.slope[:, 0].argsort()
    torch.testing.assert_close(found.slope[order], truth.slope, rtol=0, atol=0.1)
    torch.testing.assert_close(found.intercept[order], truth.intercept, rtol=0, atol=0.1)
    torch.testing.assert_close(found.variance[order], truth.variance, rtol=0, atol=0.02)
    difference = found.gate_weight[order[0]] - found.gate_weight[order[1]]
    assert difference.item() == pytest.approx(2.0, abs=0.5)
    assert hellinger(fit, model, x, g).value < 0.05


def test_a_split_expert_needs_a_third_active_one():
    """On [0.1, 1] the first two experts are always kept. Splitting the first leaves the density as it is with
    three active experts, and with two it crowds out the second, three standard deviations away."""
    truth = Parameters(tensor([[3.0], [2.0], [1.0]]), tensor([0.0, 0.5, 0.0]), tensor([[0.0]] * 3),
                       tensor([0.0, 3.0, -5.0]), tensor([1.0, 1.0, 1.0]))  # fmt: skip
    which = [0, 0, 1, 2]
    split = Parameters(*(each[which] for each in truth))
    bias = split.gate_bias.clone()
    bias[:2] -= math.log(2)
    split = split._replace(gate_bias=bias)
    x = 0.1 + 0.9 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    three, two = (
        hellinger(TopKMoE.of(split, active), TopKMoE.of(truth, 2), x, torch.Generator().manual_seed(1))
        for active in (3, 2)
    )
    assert three.value < 1e-6
    assert two.value >= 0.1
    assert voronoi_cells(split, truth).tolist() == which


def test_hellinger_of_two_normals_is_the_closed_form():
    def normal(mean, sd):
        return TopKMoE.of(Parameters(*map(tensor, ([[0.0]], [0.0], [[0.0]], [mean], [sd**2]))))

    x = torch.zeros(200_000, 1, dtype=torch.float64)
    for mean, sd in ((0.5, 1.0), (0.01, 1.0), (1.0, 2.0)):
        bc = math.sqrt(2 * sd / (1 + sd**2)) * math.exp(-(mean**2) / (4 * (1 + sd**2)))
        value, error = hellinger(normal(0.0, 1.0), normal(mean, sd), x, torch.Generator().manual_seed(0))
        assert abs(value - math.sqrt(1 - bc)) < 4 * error
        assert error < 0.02 * value


def test_voronoi_loss_by_hand():
    zeros, ones = tensor([0.0, 0.0]), tensor([1.0, 1.0])
    truth = Parameters(tensor([[1.0], [0.0]]), zeros, tensor([[2.0], [-2.0]]), zeros, ones)
    assert voronoi_loss(truth, truth) == 0
    fit = Parameters(tensor([[1.1], [0.9], [0.0]]), tensor([-1.0, -1.0, 0.2]), tensor([[2.0], [2.2], [-2.0]]),
                     tensor([0.0, 0.1, 0.3]), tensor([1.0, 1.1, 1.0]))  # fmt: skip
    e = math.exp(-1)
    expected = abs(2 * e - 1) + abs(math.exp(0.2) - 1) + math.exp(0.2) * 0.3
    expected += e * 0.1**4 + e * (math.hypot(0.1, 0.1) ** 4 + math.hypot(0.2, 0.1) ** 2)
    assert voronoi_loss(fit, truth) == pytest.approx(expected)
    with pytest.raises(ValueError, match="2 powers, but a cell holds 3"):
        voronoi_loss(Parameters(*(each[[0, 0, 0, 1]] for each in truth)), truth, r=(1.0, 4.0))


def test_slopes_and_the_rate_of_a_linear_regression():
    assert convergence_slope([10, 100, 1000], [3 * n**-0.4 for n in (10, 100, 1000)]) == pytest.approx(-0.4)
    single = Parameters(*map(tensor, ([[0.0]], [0.0], [[1.0]], [0.5], [0.25])))

    def draw(n, g):
        return torch.rand(n, 1, generator=g, dtype=torch.float64)

    g = torch.Generator().manual_seed(0)
    found = rate_experiment(TopKMoE.of(single), [100, 10_000] * 20, single, 1, draw, g, samples=2000)
    small, large = (np.mean([each.density.value for each in found if each.n == n]) for n in (100, 10_000))
    assert 5 < small / large < 20  # n^(-1/2) says 10
    assert all(each.density.error < each.density.value / 3 for each in found)
    small, large = (np.mean([each.experts[0] for each in found if each.n == n]) for n in (100, 10_000))
    assert 5 < small / large < 20


def test_cells_of_permuted_experts():
    p = random(5, 2)
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 17):
        assert voronoi_cells(Parameters(*(each[list(order)] for each in p)), p).tolist() == list(order)


def test_bad_settings_and_order_of_calls():
    with pytest.raises(ValueError, match="between 1 and the 2 experts, got 3"):
        TopKMoE(2, active=3)
    with pytest.raises(ValueError, match="fitted first"):
        TopKMoE().predict(rows())
    with pytest.raises(ValueError, match=r"2 experts on 3 features, got \(4, 3\)"):
        TopKMoE(2).fit(rows(), rows()[:, 0], start=random())
