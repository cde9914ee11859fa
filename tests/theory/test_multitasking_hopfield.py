"""The multitasking network against sums over all states, the Hopfield model, and its limits."""

import itertools
import math

import pytest
import torch

from logitkit.theory import (
    MultitaskingHopfield,
    diluted_patterns,
    hierarchical_state,
    noisy_examples,
    retrieval_phase,
    self_consistency,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def couplings(x, mode):
    """J by its definition, with a zero diagonal."""
    examples = (x if x.ndim == 3 else x[:, None]).double()
    e = examples.mean(1)
    n, v = x.shape[-1], e.square().mean()
    j = torch.zeros(n, n, dtype=torch.float64)
    for mu in range(len(e)):
        if mode == "supervised":
            j += torch.outer(e[mu], e[mu])
        else:
            for eta in examples[mu]:
                j += torch.outer(eta, eta) / examples.shape[1]
    return (j / (n * v)).fill_diagonal_(0)


@pytest.mark.parametrize("mode", ["supervised", "unsupervised"])
def test_field_and_energy_are_those_of_the_couplings(mode):
    x = noisy_examples(diluted_patterns(3, 20, 0.3, generator()), 4, 0.6, generator(1)).double()
    j = couplings(x, mode)
    fitted = MultitaskingHopfield(mode).fit(x)
    state = torch.where(torch.rand(5, 20, generator=generator(2)) < 0.5, 1.0, -1.0).double()
    torch.testing.assert_close(fitted.field(state), state @ j)
    torch.testing.assert_close(fitted.energy(state), -0.5 * torch.einsum("ni,ij,nj->n", state, j, state))
    flipped = state.clone()
    flipped[:, 7] *= -1
    change = fitted.energy(flipped) - fitted.energy(state)
    torch.testing.assert_close(change, 2 * state[:, 7] * (state @ j)[:, 7])


def test_without_dilution_and_noise_it_is_the_hopfield_model():
    x = diluted_patterns(2, 50, 0.0, generator()).double()
    assert x.abs().min() == 1
    j = (x.T @ x / 50).fill_diagonal_(0)
    fitted = MultitaskingHopfield().fit(x)
    state = torch.ones(1, 50, dtype=torch.float64)
    torch.testing.assert_close(fitted.field(state), state @ j)
    assert torch.equal(fitted.predict(x), x)


def test_glauber_has_the_gibbs_distribution():
    """Mean pattern overlap squared over all 2^12 states, against 4 000 runs, within 3 standard errors."""
    x = diluted_patterns(2, 12, 0.3, generator(3)).double()
    fitted, beta = MultitaskingHopfield(seed=5).fit(x), 0.7
    states = torch.tensor(list(itertools.product((1.0, -1.0), repeat=12)), dtype=torch.float64)
    weight = torch.softmax(-beta * fitted.energy(states), 0)
    exact = (weight[:, None] * (states @ x.T / 12).square()).sum(0)
    start = torch.where(torch.rand(4000, 12, generator=generator(4)) < 0.5, 1.0, -1.0).double()
    found = (fitted.glauber(start, beta, 60) @ x.T / 12).square()
    assert ((found.mean(0) - exact).abs() <= 3 * found.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize("beta", [1.5, 3.0])
def test_one_dense_pattern_solves_the_mean_field_equation(beta):
    m = self_consistency(1, 0.0, beta=beta).pattern.item()
    assert m == pytest.approx(math.tanh(beta * m), abs=1e-10)
    assert m > 0.5


def test_without_temperature_the_overlaps_are_hierarchical():
    found = self_consistency(3, 0.2)
    torch.testing.assert_close(found.pattern, 0.8 * 0.2 ** torch.arange(3, dtype=torch.float64))
    torch.testing.assert_close(found.mean, found.pattern)


def test_examples_of_quality_r_solve_the_equations_by_simulation():
    """E over drawn entries instead of the sum, within four standard errors."""
    d, r, m, beta = 0.3, 0.6, 5, 2.0
    found = self_consistency(2, d, r, m, beta)
    xi = diluted_patterns(2, 400_000, d, generator()).double()
    e = noisy_examples(xi, m, r, generator(1)).mean(1)
    scale = (1 - d) * (r * r + (1 - r * r) / m)
    response = torch.tanh(beta * (found.mean @ e) / scale)
    for values, expected in ((e * response, found.mean), (xi * response, found.pattern)):
        assert ((values.mean(1) - expected).abs() <= 4 * values.std(1) / math.sqrt(400_000)).all()


def test_losses_and_overlap():
    """|xi -+ s|^2 / 2N multiply to ((1 + q) / 2)^2 - m^2, q the share of entries."""
    xi = diluted_patterns(1, 40, 0.4, generator()).double()[0]
    s = torch.where(torch.rand(40, generator=generator(1)) < 0.5, 1.0, -1.0).double()
    plus, minus = ((xi - sign * s).square().sum() / 80 for sign in (1, -1))
    q, m = (xi != 0).double().mean(), (xi * s).mean()
    torch.testing.assert_close(plus * minus, ((1 + q) / 2) ** 2 - m**2, rtol=1e-12, atol=1e-12)


def test_the_hierarchical_state_is_stable_in_its_phase_only():
    assert retrieval_phase(3, 0.3) == "hierarchical"
    assert retrieval_phase(3, 0.7) == "parallel"
    for dilution, stable in ((0.3, True), (0.7, False)):
        x = diluted_patterns(3, 3000, dilution, generator(2))
        state = hierarchical_state(x, generator(3))[None]
        used = (x != 0).any(0)
        wrong = (MultitaskingHopfield().fit(x).field(state)[0] * state[0])[used] < 0
        assert bool(wrong.any()) != stable


def test_what_cannot_be_is_said():
    x = diluted_patterns(2, 10, 0.3, generator())
    with pytest.raises(ValueError, match="mode must be"):
        MultitaskingHopfield("hebbian")
    with pytest.raises(ValueError, match="x must hold -1, 0, 1"):
        MultitaskingHopfield().fit(2 * x)
    with pytest.raises(ValueError, match="fit comes first"):
        MultitaskingHopfield().predict(torch.ones(1, 10))
    with pytest.raises(ValueError, match="beta must be positive"):
        MultitaskingHopfield().fit(x).glauber(torch.ones(1, 10), 0.0, 3)
