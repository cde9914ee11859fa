"""Decoupled softmax against a loop and the form without a matrix, and what its formula promises."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit import ops
from logitkit.contrast import DecoupledSoftmax, MultiPositive

SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.0, -0.5, 3.0], [0.1, 0.2, 0.3, 0.4]]
LABELS = [[0, 2], [3, -1], [-1, -1]]


def test_loop_over_plain_floats():
    expected = []
    for row, labels in zip(SCORES, LABELS, strict=True):
        relevant = [y for y in labels if y >= 0]
        negatives = sum(math.exp(s) for k, s in enumerate(row) if k not in relevant)
        terms = [-math.log(math.exp(row[y]) / (math.exp(row[y]) + negatives)) for y in relevant]
        expected.append(sum(terms) / len(terms) if terms else 0.0)
    scores, target = torch.tensor(SCORES), torch.tensor(LABELS)
    torch.testing.assert_close(DecoupledSoftmax(reduction="none")(scores, target), torch.tensor(expected))
    torch.testing.assert_close(DecoupledSoftmax()(scores, target), torch.tensor(sum(expected) / 2))


def test_value_and_gradient_of_the_official_code():
    """SimLoss("decoupled-softmax") of losses.py in github.com/nilesh2797/DEXML on these scores."""
    scores = torch.arange(21).double().mul(1.1).sin().mul(3).view(3, 7).requires_grad_()
    loss = DecoupledSoftmax()(scores, torch.tensor([[0, 2, 5], [3, 1, -1], [6, -1, -1]]))
    loss.backward()
    assert loss.item() == pytest.approx(3.6265207844387377)
    expected = [
        [-0.105175426, 0.231760265, -0.067826558, 0.009962662, 0.000920604, -0.110360983, 0.040719436],
        [0.135028139, -0.147730967, 0.001765389, -0.166482916, 0.001807665, 0.041148976, 0.134463715],
        [0.027517516, 0.001310111, 0.000643350, 0.007088478, 0.127292666, 0.158688040, -0.322540161],
    ]
    torch.testing.assert_close(scores.grad, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_equals_the_form_without_a_matrix_of_scores():
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(12, 6, generator=g), torch.randn(20, 6, generator=g)
    positive = torch.rand(12, 20, generator=g) < 0.2
    scores = F.normalize(queries) @ F.normalize(keys).T / 0.05
    expected = ops.decoupled_softmax(queries, keys, positive.nonzero().T, temperature=0.05)
    torch.testing.assert_close(DecoupledSoftmax()(scores, positive), expected, rtol=1e-5, atol=1e-5)


def test_one_positive_is_cross_entropy():
    g = torch.Generator().manual_seed(1)
    scores, y = torch.randn(8, 30, generator=g), torch.randint(30, (8,), generator=g)
    torch.testing.assert_close(DecoupledSoftmax()(scores, y[:, None]), F.cross_entropy(scores, y))


def test_a_positive_pushes_no_other_positive():
    g = torch.Generator().manual_seed(2)
    scores = torch.randn(1, 12, generator=g, dtype=torch.float64, requires_grad=True)
    positive = torch.zeros(1, 12, dtype=torch.bool)
    positive[0, [1, 4, 7]] = True
    term = DecoupledSoftmax().terms(scores, positive)[0, 4]
    gradient = torch.autograd.grad(term, scores)[0][0]
    assert float(gradient[1]) == float(gradient[7]) == 0.0
    assert float(gradient[4]) < 0 < float(gradient[0])


def test_labels_can_be_weighed():
    g = torch.Generator().manual_seed(3)
    scores, positive = torch.randn(5, 6, generator=g), torch.rand(5, 6, generator=g) < 0.5
    positive[:, 0] = True
    weight = torch.rand(6, generator=g) + 0.1
    terms = DecoupledSoftmax().terms(scores, positive)
    rows = [
        sum(weight[k] * terms[i, k] for k in labels) / weight[labels].sum()
        if len(labels)
        else torch.tensor(0.0)
        for i, labels in enumerate(row.nonzero()[:, 0] for row in positive)
    ]
    found = DecoupledSoftmax(weight=weight, reduction="none")(scores, positive)
    torch.testing.assert_close(found, torch.stack(rows))


def test_extremes_stay_finite():
    for size, dtype in ((1e4, torch.float32), (1e3, torch.bfloat16)):
        scores = (size * torch.tensor([[1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 1.0, 0.0]])).to(dtype)
        scores.requires_grad_()
        loss = DecoupledSoftmax()(scores, torch.tensor([[0, 1], [3, -1]]))
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("kind", [MultiPositive, DecoupledSoftmax])
def test_a_row_of_positives_only_and_a_batch_without_any(kind):
    scores = torch.randn(2, 4, requires_grad=True)
    everything = kind()(scores, torch.ones(2, 4, dtype=torch.bool))
    nothing = kind()(scores, torch.full((2, 3), -1))
    (everything + nothing).backward()
    assert float(nothing.detach()) == 0
    assert torch.isfinite(scores.grad).all()
    if kind is DecoupledSoftmax:
        assert float(everything.detach()) == 0
