"""ANNCUR: exact where the scores have low rank, and never more scores than the budget."""

import pytest
import torch

from logitkit.contrast import ANNCUR, recall_vs_cost, topk_recall


def low_rank(rank=6, queries=40, items=80, seed=0, offset=False):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, rank, generator=g, dtype=torch.float64) for n in (queries + 10, items))
    scores = a @ b.T + offset * torch.randn(queries + 10, 1, generator=g, dtype=torch.float64)
    return scores[:queries], scores[queries:]


class Scorer:
    """Exact scores of some queries, and how often each query was scored."""

    def __init__(self, scores):
        self.scores, self.seen = scores, []

    def __call__(self, ids):
        ids = ids.expand(len(self.scores), -1)
        self.seen.append(ids)
        return self.scores.gather(1, ids)


@pytest.mark.parametrize("offset", [False, True])
def test_low_rank_scores_are_found_exactly(offset):
    """An offset of each query raises the rank by one, which the anchors still cover."""
    known, scores = low_rank(offset=offset)
    part = ANNCUR(10).fit(known)
    c = scores[:, part.anchor_items]
    torch.testing.assert_close(part.approx_scores(c), scores, rtol=1e-6, atol=1e-6)
    found = part.search(Scorer(scores), k=5, budget=15)
    best = scores.topk(5, dim=1)
    assert torch.equal(found.items, best.indices)
    torch.testing.assert_close(found.scores, best.values)


def test_the_budget_is_spent_once_per_item():
    known, scores = torch.randn(60, 80), torch.randn(10, 80)
    scorer = Scorer(scores)
    found = ANNCUR(12).fit(known).search(scorer, k=3, budget=30)
    seen = torch.cat(scorer.seen, dim=1)
    assert found.calls == seen.shape[1] == 30
    assert all(len(set(row)) == 30 for row in seen.tolist())
    torch.testing.assert_close(found.scores, scores.gather(1, found.items))
    scored = torch.zeros_like(scores).fill_(-9).scatter(1, seen, scores.gather(1, seen))
    assert topk_recall(found.items, scored, 3) == 1  # the best of what was scored


def test_anchors_reproduce_themselves_and_all_items_are_exact():
    known, scores = torch.randn(60, 20, dtype=torch.float64), torch.randn(10, 20, dtype=torch.float64)
    part = ANNCUR(8).fit(known)
    c = scores[:, part.anchor_items]
    torch.testing.assert_close(part.approx_scores(c)[:, part.anchor_items], c)
    everything = ANNCUR(20).fit(known)
    torch.testing.assert_close(everything.approx_scores(scores), scores)
    whole = part.search(Scorer(scores), k=20, budget=20)
    torch.testing.assert_close(whole.scores, scores.sort(dim=1, descending=True).values)


def test_an_index_may_retrieve():
    known, scores = torch.randn(60, 80), torch.randn(10, 80)
    part = ANNCUR(12).fit(known)

    def index(c, m):
        return (c @ part.embeddings).topk(m, dim=1).indices

    plain, indexed = (part.search(Scorer(scores), 5, 30, retrieve) for retrieve in (None, index))
    assert torch.equal(plain.items, indexed.items)
    assert indexed.calls == 30


def test_small_singular_values_can_be_dropped():
    known, scores = low_rank()
    g = torch.Generator().manual_seed(0)
    noisy, c = (x + 1e-6 * torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (known, scores))

    def error(rcond):
        part = ANNCUR(40, rcond).fit(noisy)  # as many as queries: the worst case
        return (part.approx_scores(c[:, part.anchor_items]) - scores).abs().max()

    assert error(1e-4) < error(None) / 3


def test_recall():
    scores = torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    assert topk_recall(torch.tensor([[0, 3], [4, 3]]), scores, 2) == 0.75
    known, test = low_rank()
    assert recall_vs_cost(known, test, [4, 14, 80], k=2)[1:] == [1.0, 1.0]
    assert recall_vs_cost(known, test, [4], k=2)[0] < 1


def test_order_of_calls_and_settings():
    with pytest.raises(ValueError, match="fitted"):
        ANNCUR(3).search(Scorer(torch.randn(2, 8)), 1, 5)
    with pytest.raises(ValueError, match="rcond"):
        ANNCUR(rcond=0.0)
