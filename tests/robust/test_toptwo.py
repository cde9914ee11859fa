"""TopTwo: exact from expectations, and its likelihood against an exhaustive search."""

import itertools
import math

import pytest
import torch

from logitkit.data import load
from logitkit.robust import TopTwo, vote_shares
from logitkit.robust.toptwo import (
    answer_differences,
    leading_direction,
    most_likely_pair,
    shifted_answers,
)


def planted(classes, items=40, workers=15, seed=0):
    """Answers g and h, q and p, and the probability of every vote."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randint(classes, (items,), generator=generator)
    h = (g + torch.randint(1, classes, (items,), generator=generator)) % classes
    q = 0.55 + 0.4 * torch.rand(items, generator=generator, dtype=torch.float64)
    p = 0.05 + 0.9 * torch.rand(workers, generator=generator, dtype=torch.float64)
    informed = torch.zeros(items, classes, dtype=torch.float64)
    informed[range(items), g], informed[range(items), h] = q, 1 - q
    return g, h, q, p, p[:, None] * informed[:, None] + (1 - p[:, None]) / classes


def expectation(chances, share):
    """E X^k of the model from the probabilities of all votes, each class by itself."""
    items, workers, classes = chances.shape
    total = torch.zeros(classes - 1, items, workers, dtype=torch.float64)
    for vote in range(classes):
        votes = torch.full((items, workers), vote)
        total += share * chances[..., vote] * shifted_answers(votes, classes, torch.zeros(()))
    k = torch.arange(1, classes, dtype=torch.float64)[:, None, None]
    return total - share * (classes - 2 * k) / classes


@pytest.mark.parametrize("classes", [3, 4, 5, 6])
def test_stage_one_is_exact_given_expectations(classes):
    g, h, q, p, chances = planted(classes)
    shifted = expectation(chances, share=0.4)
    direction = leading_direction(shifted)
    torch.testing.assert_close(direction, p / p.norm())
    differences = answer_differences(shifted, direction, torch.tensor(0.4, dtype=torch.float64))
    order = differences.argsort(dim=1)
    assert torch.equal(order[:, 0], g)
    assert torch.equal(order[:, 1], h)
    torch.testing.assert_close(1 / classes - differences.amin(1) / p.norm(), q, rtol=0, atol=1e-6)
    permuted = torch.randperm(classes)
    swapped = expectation(chances[..., permuted.argsort()], 0.4)
    again = answer_differences(swapped, leading_direction(swapped), torch.tensor(0.4, dtype=torch.float64))
    torch.testing.assert_close(again[:, permuted], differences, rtol=0, atol=1e-9)


def test_shifted_answers_by_hand():
    votes = torch.tensor([[0, 2, -1], [1, -1, -1]])
    found = shifted_answers(votes, 3, torch.tensor(0.5))
    first = [[-1 - 1 / 6, 1 - 1 / 6, 0], [1 - 1 / 6, -1 / 6, 0]]
    second = [[-1 + 1 / 6, 1 + 1 / 6, 0], [-1 + 1 / 6, 1 / 6, 0]]
    torch.testing.assert_close(found, torch.tensor([first, second], dtype=torch.float64))


def likelihood(row, skill, a, b, q, classes):
    total = 0.0
    for vote, p in zip(row, skill, strict=True):
        if vote >= 0:
            total += math.log(p * (q * (vote == a) + (1 - q) * (vote == b)) + (1 - p) / classes)
    return total


@pytest.mark.parametrize("classes", [3, 4])
def test_stage_two_is_the_exhaustive_search(classes):
    generator = torch.Generator().manual_seed(classes)
    votes = torch.randint(-1, classes, (8, 7), generator=generator)
    skill = 0.05 + 0.9 * torch.rand(7, generator=generator, dtype=torch.float64)
    first, second, q = most_likely_pair(votes, skill, classes)
    assert (first != second).all()
    for j, row in enumerate(votes.tolist()):
        best = max(
            likelihood(row, skill.tolist(), a, b, 0.5 + 0.001 * step, classes)
            for a, b in itertools.permutations(range(classes), 2)
            for step in range(501)
        )
        found = likelihood(row, skill.tolist(), int(first[j]), int(second[j]), float(q[j]), classes)
        assert found == pytest.approx(best, abs=1e-9)


def test_stage_two_follows_a_renaming_of_the_classes():
    votes = torch.randint(-1, 5, (50, 20), generator=torch.Generator().manual_seed(0))
    skill = torch.rand(20, dtype=torch.float64).clamp(0.05, 0.95)
    rename = torch.tensor([3, 0, 4, 1, 2])
    plain = most_likely_pair(votes, skill, 5)
    renamed = most_likely_pair(torch.where(votes >= 0, rename[votes], -1), skill, 5)
    clear = plain.clarity > 0.5  # at 0.5 the order of the two is arbitrary
    assert torch.equal(renamed.first[clear], rename[plain.first][clear])
    torch.testing.assert_close(renamed.clarity, plain.clarity)


@pytest.mark.parametrize("refine", [True, False])
def test_recovers_a_planted_crowd(refine):
    crowd = load("crowd:n=400,workers=60,share=0.6")
    part = TopTwo(5, refine).fit(crowd.extras["votes"])
    found = part.top_two(crowd.extras["votes"])
    truth = crowd.y, crowd.extras["second"]
    wrong = (found.first != truth[0]) | (found.second != truth[1])
    majority = vote_shares(crowd.extras["votes"], 5).sort(dim=1, descending=True, stable=True).indices
    assert (
        wrong.double().mean() < ((majority[:, 0] != truth[0]) | (majority[:, 1] != truth[1])).double().mean()
    )
    skill = crowd.extras["skill"][0]
    assert torch.corrcoef(torch.stack([part.skill.float(), skill]))[0, 1] > 0.95
    assert (found.clarity - crowd.extras["clarity"]).abs().mean() < 0.125  # what 0.75 for all would give


def test_soft_labels_and_items_or_workers_without_votes():
    votes = load("crowd").extras["votes"].clone()
    votes[3] = -1
    votes[:, 7] = -1
    part = TopTwo(5).fit(votes)
    labels, (first, second, q) = part.transform(votes), part.top_two(votes)
    torch.testing.assert_close(labels[3], torch.full((5,), 0.2))
    torch.testing.assert_close(labels[0].double().sum().item(), 1.0)
    assert labels[0, first[0]] == pytest.approx(q[0].item())
    assert labels[0, second[0]] == pytest.approx(1 - q[0].item())
    assert torch.equal(part.predict(votes), first)
    without = TopTwo(5).fit(votes[:, [i for i in range(50) if i != 7]])
    torch.testing.assert_close(part.skill[:7], without.skill[:7], rtol=0, atol=0.02)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 3, got 2"):
        TopTwo(2)
    with pytest.raises(ValueError, match="no answer"):
        TopTwo(3).fit(torch.full((4, 2), -1))
    with pytest.raises(ValueError, match="fitted"):
        TopTwo(3).predict(torch.zeros(4, 2, dtype=torch.long))
