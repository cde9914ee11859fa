"""Dawid-Skene against its steps in plain loops, and against counting votes."""

import numpy as np
import pytest
import torch

from logitkit.data import load
from logitkit.robust import DawidSkene, vote_shares


def loops(votes, classes, steps):
    """EM as in the paper, over plain floats."""
    items, workers = votes.shape
    posterior = np.zeros((items, classes))
    for j in range(items):
        given = [v for v in votes[j] if v >= 0]
        posterior[j] = np.bincount(given, minlength=classes) / len(given) if given else 1 / classes
    for _ in range(steps):
        prior = posterior.mean(0)
        confusion = np.full((workers, classes, classes), 1 / classes)
        for j in range(items):
            for i in range(workers):
                if votes[j, i] >= 0:
                    confusion[i, :, votes[j, i]] += posterior[j]
        confusion /= confusion.sum(2, keepdims=True)
        for j in range(items):
            p = prior.copy()
            for i in range(workers):
                if votes[j, i] >= 0:
                    p = p * confusion[i, :, votes[j, i]]
            posterior[j] = p / p.sum()
    return posterior


def test_steps_of_em():
    votes = torch.randint(-1, 3, (20, 6), generator=torch.Generator().manual_seed(0))
    votes[4] = -1
    expected = loops(votes.numpy(), 3, steps=4)
    np.testing.assert_allclose(DawidSkene(3, steps=4).fit(votes).transform(votes), expected, atol=1e-6)


def test_shares_of_votes():
    votes = torch.tensor([[0, 0, 2, -1], [-1, -1, -1, -1]])
    torch.testing.assert_close(vote_shares(votes, 3), torch.tensor([[2 / 3, 0, 1 / 3], [1 / 3] * 3]))


def test_better_than_counting_where_skills_differ():
    crowd = load("crowd:n=2000,share=0.2")
    votes = crowd.extras["votes"]
    right = (DawidSkene(5).fit(votes).predict(votes) == crowd.y).double().mean()
    assert right > (vote_shares(votes, 5).argmax(1) == crowd.y).double().mean() + 0.03


def test_bad_votes_and_order_of_calls():
    votes = torch.zeros(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="fitted"):
        DawidSkene(3).transform(votes)
    with pytest.raises(ValueError, match=r"hold 3; expected classes in \[0, 3\)"):
        DawidSkene(3).fit(votes + 3)
    with pytest.raises(ValueError, match=r"\(items, 4\)"):
        DawidSkene(3).fit(votes).predict(votes[:, :2])
