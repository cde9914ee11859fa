"""Majority voting against counting by hand."""

from collections import Counter

import pytest
import torch

from logitkit.robust import Majority


def test_counts_votes():
    votes = torch.randint(-1, 4, (50, 7), generator=torch.Generator().manual_seed(0))
    votes[3] = -1
    part = Majority(4).fit(votes)
    found, best = part.transform(votes), part.predict(votes)
    for j, row in enumerate(votes.tolist()):
        counts = Counter(v for v in row if v >= 0)
        total = sum(counts.values())
        shares = [counts[k] / total if total else 0.25 for k in range(4)]
        torch.testing.assert_close(found[j], torch.tensor(shares))
        assert best[j] == max(range(4), key=lambda k, counts=counts: (counts[k], -k))


def test_bad_votes_and_order_of_calls():
    votes = torch.zeros(3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="fitted"):
        Majority(3).transform(votes)
    with pytest.raises(ValueError, match=r"\(items, 4\)"):
        Majority(3).fit(votes).predict(votes[:, :2])
    with pytest.raises(ValueError, match=r"hold 3; expected classes in \[0, 3\)"):
        Majority(3).fit(votes + 3)
    again = Majority(3)
    again.load_state_dict(Majority(3).fit(votes).state_dict())
    assert torch.equal(again.predict(votes), votes[:, 0])
