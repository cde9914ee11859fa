"""NT-Xent with labels against a loop over plain floats, and SimCLR's loss as a case of it."""

import math

import pytest
import torch

from logitkit.contrast import NTXentLoss
from logitkit.engine import Recipe, run
from logitkit.ops import nt_xent


def embeddings(rows):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_nt_xent_is_the_loop():
    z, y = embeddings(7), [0, 1, 0, 2, 1, 0, 3]
    unit = z / z.norm(dim=1, keepdim=True)
    s, terms = (unit @ unit.T).tolist(), []
    for i in range(7):
        against = sum(math.exp(s[i][n] / 0.2) for n in range(7) if y[n] != y[i])
        for p in range(7):
            if p != i and y[p] == y[i]:
                own = math.exp(s[i][p] / 0.2)
                terms.append(-math.log(own / (own + against)))
    assert NTXentLoss(0.2)(z, torch.tensor(y)).item() == pytest.approx(sum(terms) / len(terms))


def test_two_views_are_simclr():
    z = embeddings(10)
    found = NTXentLoss(0.5)(z, torch.arange(5).repeat(2))
    torch.testing.assert_close(found, nt_xent(z[:5], z[5:], temperature=0.5))


def test_it_trains_embeddings_for_retrieval():
    settings = {"data": "glyphs:n=300,classes=10,size=12+task=retrieval", "model": "cnn(width=8)"}
    found, untrained = (run(Recipe.of(**settings, epochs=5, loss="nt_xent", lr=lr)) for lr in (3e-3, 1e-9))
    assert found.metrics["map"] > untrained.metrics["map"]
