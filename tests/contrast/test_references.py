"""Supervised contrastive, multi-similarity and triplet losses against loops over plain floats."""

import itertools
import math

import pytest
import torch

from logitkit.contrast import MultiSimilarityLoss, SupConLoss, TripletLoss
from logitkit.engine import Recipe, run


def batch():
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z, torch.tensor([0, 1, 0, 2, 1, 0, 3])


def cosines(z):
    unit = z / z.norm(dim=1, keepdim=True)
    return (unit @ unit.T).tolist()


def test_supcon_is_the_loop():
    z, y = batch()
    s, terms = cosines(z), []
    for i in range(7):
        positives = [j for j in range(7) if j != i and y[j] == y[i]]
        if positives:
            total = sum(math.exp(s[i][j] / 0.2) for j in range(7) if j != i)
            terms.append(-sum(math.log(math.exp(s[i][p] / 0.2) / total) for p in positives) / len(positives))
    assert SupConLoss(0.2)(z, y).item() == pytest.approx(sum(terms) / len(terms))


def test_multi_similarity_is_the_loop():
    z, y = batch()
    s, terms = cosines(z), []
    for i in range(7):
        pull = sum(math.exp(-2 * (s[i][j] - 0.4)) for j in range(7) if j != i and y[j] == y[i])
        push = sum(math.exp(10 * (s[i][j] - 0.4)) for j in range(7) if y[j] != y[i])
        terms.append(math.log1p(pull) / 2 + math.log1p(push) / 10)
    assert MultiSimilarityLoss(2.0, 10.0, 0.4)(z, y).item() == pytest.approx(sum(terms) / 7)


def test_triplets_are_the_loop():
    z, y = batch()
    unit = z / z.norm(dim=1, keepdim=True)
    terms = []
    for a, p, n in itertools.permutations(range(7), 3):
        if y[a] == y[p] and y[a] != y[n]:
            terms.append(float((unit[a] - unit[p]).norm() - (unit[a] - unit[n]).norm()) + 0.3)
    above = [t for t in terms if t > 0]
    assert TripletLoss(0.3)(z, y).item() == pytest.approx(sum(above) / len(above), rel=1e-5)


@pytest.mark.parametrize("loss", ["supcon", "multi_similarity", "triplet"])
def test_they_train_embeddings_for_retrieval(loss):
    settings = {
        "data": "glyphs:n=300,classes=10,size=12+task=retrieval",
        "model": "cnn(width=8)",
        "epochs": 6,
    }
    found = run(Recipe.of(**settings, loss=loss, lr=3e-3))
    untrained = run(Recipe.of(**settings, loss=loss, lr=1e-9))
    assert found.metrics["map"] > untrained.metrics["map"]
