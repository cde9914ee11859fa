"""The supervised contrastive loss against a loop over plain floats."""

import math

import pytest
import torch

from logitkit.contrast import SupConLoss
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


def test_it_trains_embeddings_for_retrieval():
    settings = {"data": "glyphs:n=300,classes=10,size=12+task=retrieval", "model": "cnn(width=8)"}
    found, untrained = (run(Recipe.of(**settings, epochs=5, loss="supcon", lr=lr)) for lr in (3e-3, 1e-9))
    assert found.metrics["map"] > untrained.metrics["map"]


def test_a_head_that_learns_by_itself_learns_beside_it():
    found = run(Recipe.of(data="digits", loss="supcon", head="naive_bayes", epochs=5))
    assert found.metrics["accuracy"] > 0.8
