"""The soft top-k loss against a root found by SciPy, and its limits."""

import math

import pytest
import torch
from scipy import optimize

from logitkit.contrast import SoftTopK

SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.0, -0.5, 3.0], [0.1, 0.2, 0.3, 0.4]]
LABELS = [[0, 2], [3, -1], [-1, -1]]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def excess(t, row, k, alpha):
    return sum(sigmoid(alpha * (s + t)) for s in row) - k


@pytest.mark.parametrize(("k", "alpha"), [("positives", 1.0), (1.5, 3.0)])
def test_loop_over_plain_floats(k, alpha):
    expected = []
    for row, labels in zip(SCORES, LABELS, strict=True):
        relevant = [y for y in labels if y >= 0]
        if not relevant:
            expected.append(0.0)
            continue
        among = len(relevant) if k == "positives" else k
        t = optimize.brentq(excess, -50, 50, (row, among, alpha))
        expected.append(sum(-math.log(sigmoid(alpha * (row[y] + t))) for y in relevant) / len(relevant))
    found = SoftTopK(k, alpha, reduction="none")(torch.tensor(SCORES), torch.tensor(LABELS))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_large_alpha_asks_for_the_k_best():
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    loss = SoftTopK(k=2, alpha=1e3)
    assert float(loss(scores, torch.tensor([[0, 1]]))) < 1e-6
    assert float(loss(scores, torch.tensor([[2]]))) > 100


def test_extremes_stay_finite():
    scores = (1e4 * torch.tensor([[1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 1.0, 0.0]])).requires_grad_()
    loss = SoftTopK()(scores, torch.tensor([[0, 1], [3, -1]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_k_is_a_number_or_the_positives():
    with pytest.raises(ValueError, match="'positives', got 'all'"):
        SoftTopK(k="all")
    with pytest.raises(ValueError, match="k must"):
        SoftTopK(k=0)
