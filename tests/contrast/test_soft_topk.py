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


@pytest.mark.parametrize(
    ("k", "alpha", "value", "gradient"),
    [
        (
            "positives", 1.0, 2.544022021125688,
            [[-0.027460201, 0.020345417, 0.008567099, 0.037228360, 0.005730660, -0.093196656, 0.048785322],
             [0.066519097, -0.045690685, 0.006188793, -0.164670183, 0.006330300, 0.064729464, 0.066593215],
             [0.048121288, 0.002880997, 0.001423537, 0.014785888, 0.111635797, 0.116744265, -0.295591772]],
        ),
        (
            3, 2.0, 2.8751625956423457,
            [[-0.034499524, 0.010350923, 0.011436628, 0.071592323, 0.000772556, -0.217828543, 0.158175637],
             [0.047608422, 0.043806198, 0.001871901, -0.333229528, 0.001962169, 0.190024983, 0.047955855],
             [0.203308553, 0.004240854, 0.001029871, 0.097119141, 0.020118216, 0.013153631, -0.338970266]],
        ),
    ],
)  # fmt: skip
def test_values_and_gradients_of_the_official_code(k, alpha, value, gradient):
    """SimLoss("topk") of losses.py in github.com/nilesh2797/DEXML with its dist_log_topk, topk_K = num_pos
    and 3."""
    scores = torch.arange(21).double().mul(1.1).sin().mul(3).view(3, 7).requires_grad_()
    loss = SoftTopK(k, alpha)(scores, torch.tensor([[0, 2, 5], [3, 1, -1], [6, -1, -1]]))
    loss.backward()
    assert loss.item() == pytest.approx(value)
    torch.testing.assert_close(scores.grad, torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=1e-9)


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
