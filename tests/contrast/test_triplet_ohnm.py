"""Triplets with hard negatives of the batch against a loop, and that positives are no negatives."""

import math

import pytest
import torch

from logitkit.contrast import TripletOHNM, triplet_ohnm


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_equals_a_loop(soft):
    g = torch.Generator().manual_seed(6)
    s = torch.randn(9, 9, generator=g)
    positive = (torch.rand(9, 9, generator=g) < 0.3) | torch.eye(9, dtype=torch.bool)
    positive[4] = True
    expected = []
    for i in range(9):
        negatives = sorted((s[i, j].item() for j in range(9) if not positive[i, j]), reverse=True)[:3]
        terms = [max(0.0, value - s[i, i].item() + 0.5) for value in negatives]
        if soft:
            active = [(math.exp(v / 0.1), t) for v, t in zip(negatives, terms, strict=True) if t > 0]
            total = sum(weight for weight, _ in active)
            expected.append(sum(weight * term for weight, term in active) / total if active else 0.0)
        else:
            expected.append(sum(terms) / len(terms) if terms else 0.0)
    found = triplet_ohnm(s, positive, margin=0.5, k=3, soft=soft)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_other_positives_of_an_example_are_never_its_negatives():
    scores = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0]])
    both = torch.tensor([[0, 1], [0, 1]])
    assert float(TripletOHNM(k=1)(scores, both)) == 0
    apart = TripletOHNM(k=1, margin=0.3)(scores, torch.tensor([[0], [1]]))
    assert float(apart) == pytest.approx(4.3)
    none = TripletOHNM(reduction="none")(scores, torch.tensor([[0], [-1]]))
    assert none.tolist() == [0.0, 0.0]
