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


def test_values_and_gradients_of_the_official_code():
    """TripletMarginLossOHNM of ngame/libs/loss.py in github.com/Extreme-classification/ngame, k = 3. With its
    softmax it divides by k, and a negative that costs nothing still has weight e^0: the last row has one."""
    s = torch.arange(36).double().mul(1.7).sin().view(6, 6).requires_grad_()
    positive = torch.eye(6, dtype=torch.bool)
    positive[[0, 3, 5], [2, 1, 4]] = True
    sums = [3.1842652742145674, 3.861314698884011, 6.053519653047151, 4.849011398910974, 3.472085849960386,
            1.5416127968277928]  # fmt: skip
    loss = triplet_ohnm(s, positive, margin=0.3, k=3)
    assert (3 * loss).tolist() == pytest.approx(sums)
    (gradient,) = torch.autograd.grad(loss.mean(), s)
    parts = [[-3, 1, 0, 0, 1, 1], [0, -3, 1, 1, 0, 1], [1, 0, -3, 1, 1, 0], [0, 0, 1, -3, 1, 1],
             [1, 0, 1, 1, -3, 0], [1, 1, 0, 0, 0, -2]]  # fmt: skip
    torch.testing.assert_close(gradient, torch.tensor(parts).double() / 18)

    weighed = [1.264381156476, 1.772764432756, 2.243028364279, 2.190560982508, 1.698126253381]
    soft = triplet_ohnm(s, positive, margin=0.3, k=3, soft=True)
    assert soft[:5].tolist() == pytest.approx(weighed)
    active = s[5, [0, 1]].div(0.1).exp().sum().item()
    assert soft[5].item() * active / (active + 1) == pytest.approx(0.771342939435107)
    (gradient,) = torch.autograd.grad(soft[0], s)
    # theirs is of the mean of 18 terms, ours of the sum of 3
    expected = [-0.055555555556, 0.061393835206, 0.0, 0.0, -0.001233188736, -0.004605090914]
    assert (gradient[0] / 18).tolist() == pytest.approx(expected, abs=1e-9)


def test_other_positives_of_an_example_are_never_its_negatives():
    scores = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0]])
    both = torch.tensor([[0, 1], [0, 1]])
    assert float(TripletOHNM(k=1)(scores, both)) == 0
    apart = TripletOHNM(k=1, margin=0.3)(scores, torch.tensor([[0], [1]]))
    assert float(apart) == pytest.approx(4.3)
    none = TripletOHNM(reduction="none")(scores, torch.tensor([[0], [-1]]))
    assert none.tolist() == [0.0, 0.0]
