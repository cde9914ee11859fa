"""The triplet loss against a loop over plain floats."""

import itertools

import pytest
import torch

from logitkit.contrast import TripletLoss
from logitkit.engine import Recipe, run


def batch():
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z, torch.tensor([0, 1, 0, 2, 1, 0, 3])


def test_triplets_are_the_loop():
    z, y = batch()
    unit = z / z.norm(dim=1, keepdim=True)
    terms = []
    for a, p, n in itertools.permutations(range(7), 3):
        if y[a] == y[p] and y[a] != y[n]:
            terms.append(float((unit[a] - unit[p]).norm() - (unit[a] - unit[n]).norm()) + 0.3)
    above = [t for t in terms if t > 0]
    assert TripletLoss(0.3)(z, y).item() == pytest.approx(sum(above) / len(above), rel=1e-5)


def test_it_trains_embeddings_for_retrieval():
    settings = {"data": "glyphs:n=300,classes=10,size=12+task=retrieval", "model": "cnn(width=8)"}
    found, untrained = (run(Recipe.of(**settings, epochs=5, loss="triplet", lr=lr)) for lr in (3e-3, 1e-9))
    assert found.metrics["map"] > untrained.metrics["map"]
