"""Many-facet Rasch: the model against its definition, the fit against what a maximum must satisfy."""

import math

import pytest
import torch

from logitkit.theory import FacetedRasch, rating_log_probabilities


def simulated(subjects=40, items=4, judges=6, levels=4, seed=0):
    """(rows, 4): every judge rates every item of two thirds of the subjects; and the parameters."""
    g = torch.Generator().manual_seed(seed)
    theta, delta = torch.randn(subjects, generator=g), 0.5 * torch.randn(items, generator=g)
    alpha = torch.randn(judges, generator=g)
    steps = torch.linspace(-1.2, 1.2, levels - 1)
    grid = torch.meshgrid(*(torch.arange(k) for k in (subjects, items, judges)), indexing="ij")
    rows = torch.stack(grid, dim=-1).view(-1, 3)
    rows = rows[(rows[:, 0] + rows[:, 2]) % 3 != 0]
    n, i, j = rows.T
    p = rating_log_probabilities(theta[n] - delta[i] - alpha[j], steps.expand(len(rows), -1)).exp()
    y = torch.multinomial(p, 1, generator=g)
    return torch.cat([rows, y], dim=1), theta, alpha


def test_probabilities_have_the_models_ratios_and_sum_to_one():
    location = torch.tensor([-1.0, 0.3, 2.0])
    steps = torch.tensor([[-1.0, 0.5], [0.2, -0.2], [0.0, 1.0]])
    log_p = rating_log_probabilities(location, steps)
    torch.testing.assert_close(log_p.diff(dim=1), location[:, None] - steps)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(3))


def test_two_levels_and_one_judge_are_the_rasch_model():
    rows, *_ = simulated(judges=1, levels=2)
    rows[:, 0] = torch.unique(rows[:, 0], return_inverse=True)[1]
    n, i, _, y = rows.T
    part = FacetedRasch(prior_variance=2.0).fit(rows)
    assert part.alpha.tolist() == [0.0]
    chance = torch.sigmoid(part.theta[n] - part.delta[i])
    torch.testing.assert_close(part.predict(rows[:, :3]), chance)

    def loss(theta, delta):
        p = torch.sigmoid(theta[n] - delta[i])
        fit = torch.nn.functional.binary_cross_entropy(p, y.double(), reduction="sum")
        return fit + (theta.square().sum() + delta.square().sum()) / 4

    best = loss(part.theta, part.delta)
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        move = 0.01 * torch.randn(len(part.theta), generator=g, dtype=torch.float64)
        turn = 0.01 * torch.randn(len(part.delta), generator=g, dtype=torch.float64)
        assert loss(part.theta + move, part.delta + turn - turn.mean()) > best


def test_observed_and_expected_scores_agree_without_a_prior():
    rows, *_ = simulated()
    part = FacetedRasch(prior_variance=math.inf).fit(rows)
    gap = rows[:, 3] - part.predict(rows[:, :3])
    for facet in rows.T[:3]:
        assert torch.zeros(int(facet.max()) + 1).double().index_add(0, facet, gap).abs().max() < 1e-4
    reached = (rows[:, 3:] >= torch.arange(1, 4)).double()
    chance = part.probabilities(rows[:, :3]).flip(1).cumsum(1).flip(1)[:, 1:]
    per_item = torch.zeros(4, 3).double().index_add(0, rows[:, 1], reached - chance)
    assert per_item.abs().max() < 1e-4


def test_likelihood_does_not_see_a_common_shift_and_the_fit_has_none():
    rows, *_ = simulated()
    part = FacetedRasch().fit(rows)
    before = part.probabilities(rows[:, :3])
    part.theta, part.delta = part.theta + 0.7, part.delta + 0.7
    torch.testing.assert_close(part.probabilities(rows[:, :3]), before)
    part = FacetedRasch().fit(rows)
    for values in (part.alpha, part.delta):
        assert values.mean().item() == pytest.approx(0, abs=1e-12)
    assert part.tau.sum(1).abs().max() < 1e-12


def test_recovers_the_truth_within_its_errors():
    rows, theta, alpha = simulated(subjects=150)
    part = FacetedRasch().fit(rows)
    assert torch.corrcoef(torch.stack([part.theta, theta.double()]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([part.alpha, alpha.double()]))[0, 1] > 0.97
    off = (part.theta - theta - (part.theta - theta).mean()) / part.theta_se
    assert 0.8 < off.square().mean().sqrt() < 1.4


def test_infit_finds_the_judge_who_guesses_and_leaves_out():
    rows, *_ = simulated(subjects=80)
    guesses = torch.randint(4, (len(rows),), generator=torch.Generator().manual_seed(1))
    rows[:, 3] = torch.where(rows[:, 2] == 5, guesses, rows[:, 3])
    part = FacetedRasch().fit(rows)
    assert part.infit.argmax() == 5
    assert part.infit[5] > 1.5
    j, y = rows[:, 2], rows[:, 3]
    p = part.probabilities(rows[:, :3])
    level = torch.arange(4).double()
    mean = p @ level
    spread = ((level - mean[:, None]).square() * p).sum(1)
    by_hand = (y - mean).square()[j == 2].sum() / spread[j == 2].sum()
    assert part.infit[2].item() == pytest.approx(by_hand.item())
    left = FacetedRasch(infit_bounds=(0.5, 1.5)).fit(rows)
    assert left.alpha[5].isnan()
    assert not left.alpha[:5].isnan().any()
    only = FacetedRasch().fit(rows[j != 5])
    torch.testing.assert_close(left.theta, only.theta, rtol=0, atol=1e-4)
    assert left.infit[5] == part.infit[5]


def test_a_prior_keeps_extreme_subjects_finite():
    rows, *_ = simulated()
    rows[rows[:, 0] == 3, 3] = 3
    part = FacetedRasch().fit(rows)
    assert 2 < part.theta[3] < 20
    assert part.theta_se[3] > part.theta_se.median()
    with pytest.raises(ValueError, match="subject 3 has only lowest or only highest"):
        FacetedRasch(prior_variance=math.inf).fit(rows)


def test_unlinked_groups_are_refused():
    rows, *_ = simulated()
    rows[rows[:, 0] % 2 == 1, 2] += 6
    with pytest.raises(ValueError, match="subjects and judges fall into 2 groups"):
        FacetedRasch().fit(rows)


def test_measures_new_subjects_where_expected_scores_meet_the_observed():
    rows, *_ = simulated(subjects=80)
    part = FacetedRasch().fit(rows)
    scores = torch.tensor([[0.0, 0, 1, 0], [1.5, 2, 0.3, 3], [3, 3, 3, 3]], dtype=torch.float64)
    theta = part.measure(scores)
    level = torch.arange(4).double()
    for value, row in zip(theta, scores, strict=True):
        p = rating_log_probabilities(value - part.delta, part.tau).exp()
        assert ((p @ level).sum() + value / 10).item() == pytest.approx(row.sum().item(), abs=1e-9)
    assert (theta.diff() > 0).all()
    part.prior_variance = math.inf
    assert part.measure(scores).isnan().tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"shape \(batch, 4\)"):
        part.measure(scores[:, :3])
    with pytest.raises(ValueError, match=r"lie in \[0, 3\]"):
        part.measure(scores + 1)


def test_bad_input():
    rows, *_ = simulated()
    with pytest.raises(ValueError, match=r"level 3; expected levels in \[0, 3\)"):
        FacetedRasch(levels=3).fit(rows)
    with pytest.raises(ValueError, match="must be fitted"):
        FacetedRasch().predict(rows[:, :3])
    with pytest.raises(ValueError, match="item 0 never got level 4"):
        FacetedRasch(levels=5, prior_variance=math.inf).fit(rows)
    with pytest.raises(ValueError, match="enclose 1"):
        FacetedRasch(infit_bounds=(1.1, 2.0))
