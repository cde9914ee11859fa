"""Ranks, recall and hubness against sorting and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import skew

from logitkit.ops import hubness_skew, k_occurrence, recall_at, retrieval_ranks


def test_ranks_are_places_in_the_sorted_row():
    s = torch.randn(20, 30)
    order = np.argsort(-s.numpy(), axis=1)
    relevant = torch.randint(30, (20,))
    expected = [order[i].tolist().index(relevant[i]) + 1 for i in range(20)]
    assert retrieval_ranks(s, relevant).tolist() == expected
    assert retrieval_ranks(s).tolist() == [order[i].tolist().index(i) + 1 for i in range(20)]
    several = torch.rand(20, 30) < 0.2
    several[:, 3] = True
    first = [1 + next(r for r, j in enumerate(order[i]) if several[i, j]) for i in range(20)]
    assert retrieval_ranks(s, several).tolist() == first


def test_equal_similarities_win_nothing():
    ranks = retrieval_ranks(torch.zeros(4, 10))
    assert ranks.tolist() == [10] * 4
    assert recall_at(ranks, 9) == 0
    assert recall_at(ranks, 10) == 1


def test_recall_counts_ranks():
    ranks = torch.tensor([1, 1, 3, 10])
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == [0.5, 0.75, 1.0]


def test_hubness_is_scipys_skewness_of_the_counts():
    s = torch.randn(50, 40) + 2 * (torch.arange(40) < 3)
    counts = np.bincount(np.argsort(-s.numpy(), axis=1)[:, :10].ravel(), minlength=40)
    assert k_occurrence(s).tolist() == counts.tolist()
    assert hubness_skew(s) == pytest.approx(skew(counts))
    assert hubness_skew(torch.eye(8), k=1) == 0


@pytest.mark.parametrize(
    "relevant",
    [
        torch.tensor([0, 1, 9]),
        torch.tensor([0, 1]),
        torch.zeros(3, 4, dtype=torch.bool),
        torch.tensor([0, 1, -1]),
    ],
    ids=["beyond", "length", "none", "negative"],
)
def test_bad_relevance(relevant):
    with pytest.raises(ValueError, match="relevant must"):
        retrieval_ranks(torch.zeros(3, 4), relevant)


def test_bad_k():
    with pytest.raises(ValueError, match="between 1 and the 4"):
        k_occurrence(torch.zeros(3, 4), 5)
