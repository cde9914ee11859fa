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


def test_scores_of_the_official_code():
    """CURApprox of eval/matrix_approx_zeshel.py in github.com/iesl/anncur, approx_preference "rows", rows 0-7
    and columns 1, 4, 6, 7 of this matrix as anchors: rows 8-11, and the best three items of each."""
    matrix = torch.arange(108).double().mul(1.9).sin().mul(2).view(12, 9) + torch.arange(9).double().cos()
    anchors = ANNCUR(4).fit(matrix).anchor_items
    place = torch.ones(9, dtype=torch.bool).index_fill(0, anchors, False)
    columns = torch.empty(9, dtype=torch.long)  # so that the anchors drawn are these four
    columns[anchors], columns[place] = torch.tensor([1, 4, 6, 7]), torch.tensor([0, 2, 3, 5, 8])
    part = ANNCUR(4).fit(matrix[:8, columns])
    found = part.approx_scores(matrix[8:, [1, 4, 6, 7]])[:, columns.argsort()]
    expected = [
        [-0.980230658, 1.445938004, 0.978518676, -2.797389814, -0.879683742, 2.237212328, -0.076914351,
         -0.529090602, 1.721141014],
        [1.076061705, -1.375518653, 0.746521315, 0.174071496, -2.568971260, 0.358009079, 2.827426776,
         -0.527773722, -1.184051581],
        [2.953181736, 0.315967298, -2.224278237, 0.403442546, 0.253521757, -1.696327061, 1.333224641,
         2.492682340, -1.642813310],
        [0.229351435, 2.535900863, -0.935810658, -2.649587270, 0.939079552, 0.913435390, -1.039751099,
         1.417236487, 1.425523278],
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)
    assert found.topk(3).indices.tolist() == [[5, 8, 1], [6, 0, 2], [0, 7, 6], [1, 8, 7]]


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
