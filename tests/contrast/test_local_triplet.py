"""Matching and local triplets against loops over places, and numbers of the authors' code."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.contrast import LocalTripletLoss, hard_tuples, local_triplet, match_local


def official_tuple():
    """Four images of 12 places; the second is the first moved, and a little of the third."""
    i = torch.arange(4 * 12 * 5).float()
    x = torch.sin(i * 1.7).view(4, 12, 5) + 0.3 * torch.cos(i**1.5).view(4, 12, 5)
    x[1] = x[0].roll(3, 0) + 0.2 * x[2]
    return x, x.abs().sum(2)


def test_matches_and_losses_of_the_official_code():
    """match_attn and SuperfeatureTripletLoss of github.com/bassyess/CFCD on this tuple."""
    x, attention = official_tuple()
    nearest, matched = match_local(x[:1], x[1:2], attention[1:2])
    places = matched[0].nonzero()[:, 0]
    assert places.tolist() == [0, 3, 6, 8, 10, 11]
    assert nearest[0, places].tolist() == [9, 0, 3, 5, 7, 8]
    for margin, expected in ((0.5, 4.851446151733398), (2.0, 22.8514461517334)):
        loss = local_triplet(x[:1], x[1:2], x[None, 2:], attention[1:2], margin=margin)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def by_loops(query, positive, attention, ratio):
    """Pairs (place of query, place of positive) of one image pair."""
    q, p = F.normalize(query, dim=1), F.normalize(positive, dim=1)
    distance = [[(a - b).norm().item() for b in p] for a in q]
    top = sorted(range(len(p)), key=lambda j: -attention[j])[: len(p) // 2]
    pairs = set()
    for j in top:
        column = [row[j] for row in distance]
        i = min(range(len(q)), key=column.__getitem__)
        second = sorted(column)[1]
        if min(range(len(p)), key=distance[i].__getitem__) == j and column[i] <= ratio * second:
            pairs.add((i, j))
    return pairs


@pytest.mark.parametrize("ratio", [0.7, 0.9, 1.0])
def test_matching_is_brute_force(ratio):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 20, 6, generator=generator, dtype=torch.float64)
    positive = query[:, torch.randperm(20, generator=generator)] + 0.4 * torch.randn(
        3, 20, 6, generator=generator, dtype=torch.float64
    )
    attention = torch.rand(3, 20, generator=generator)
    nearest, matched = match_local(query, positive, attention, ratio)
    for b in range(3):
        found = {(int(nearest[b, j]), j) for j in matched[b].nonzero()[:, 0].tolist()}
        expected = by_loops(query[b], positive[b], attention[b].tolist(), ratio)
        assert found == expected
        assert expected


def test_tuples_are_the_next_of_the_class_and_the_most_similar_others():
    embeddings = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [1, 0.2], [0.5, 0.5]])
    labels = torch.tensor([0, 1, 0, 1, 2])
    positive, has_positive, negatives, exists = hard_tuples(embeddings, labels, negatives=4)
    assert has_positive.tolist() == [True, True, True, True, False]
    assert positive[:4].tolist() == [2, 3, 0, 1]
    assert negatives[0, :3].tolist() == [1, 3, 4]
    assert exists.sum(1).tolist() == [3, 3, 3, 3, 4]


def test_loss_of_a_batch_is_the_mean_over_its_tuples():
    torch.manual_seed(0)
    maps = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    maps[2] = maps[0] + 0.1 * torch.randn(3, 2, 2)
    embeddings, labels = torch.randn(5, 4), torch.tensor([0, 1, 0, 2, 2])
    found = LocalTripletLoss(margin=1.0, negatives=2, reduction="none")(embeddings, labels, maps)
    places = maps.flatten(2).mT
    attention = maps.abs().sum(1).flatten(1)
    similarity = F.normalize(embeddings) @ F.normalize(embeddings).T
    expected = []
    for anchor, positive in ((0, 2), (2, 0), (3, 4), (4, 3)):
        others = [j for j in range(5) if labels[j] != labels[anchor]]
        others.sort(key=lambda j: -similarity[anchor, j].item())
        total = 0.0
        q, p = F.normalize(places[anchor], dim=1), F.normalize(places[positive], dim=1)
        for i, j in by_loops(places[anchor], places[positive], attention[positive].tolist(), 0.9):
            for other in others[:2]:
                away = min((q[i] - n).square().sum().item() for n in F.normalize(places[other], dim=1))
                total += max(0.0, (q[i] - p[j]).square().sum().item() - away + 1.0)
        expected.append(total)
    assert found[1].item() == 0
    assert found[[0, 2, 3, 4]].tolist() == pytest.approx(expected)
    mean = LocalTripletLoss(margin=1.0, negatives=2)(embeddings, labels, maps)
    assert mean.item() == pytest.approx(sum(expected) / 4)
    assert sum(expected) > 0


def test_gradient_reaches_the_map():
    torch.manual_seed(1)
    maps = torch.randn(4, 3, 5, dtype=torch.float64)
    maps[1] = maps[0] + 0.2 * torch.randn(3, 5)
    maps.requires_grad_()
    embeddings, labels = torch.randn(4, 4), torch.tensor([0, 0, 1, 2])
    loss = LocalTripletLoss(margin=1.0)
    assert loss(embeddings, labels, maps) > 0
    assert torch.autograd.gradcheck(lambda m: loss(embeddings, labels, m), maps)


def test_no_class_twice_is_zero():
    maps = torch.randn(3, 4, 2, 2, requires_grad=True)
    loss = LocalTripletLoss()(torch.randn(3, 4), torch.arange(3), maps)
    loss.backward()
    assert loss.item() == 0
    assert not maps.grad.any()


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 positions"):
        LocalTripletLoss()(torch.randn(3, 4), torch.arange(3), torch.randn(3, 4, 1))
    with pytest.raises(ValueError, match="NaN"):
        LocalTripletLoss()(torch.randn(3, 4), torch.arange(3), torch.full((3, 4, 2), torch.nan))
    with pytest.raises(ValueError, match="negatives"):
        LocalTripletLoss(negatives=0)
