"""The losses of many labels against loops over plain floats, and what their formulas promise."""

import math

import pytest
import torch
from scipy import optimize
from torch.nn import functional as F

from logitkit.contrast import DecoupledSoftmax, MultiPositive, SoftTopK
from logitkit.losses import BinaryCrossEntropy

LOSSES = (BinaryCrossEntropy, MultiPositive, DecoupledSoftmax, SoftTopK)
SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.0, -0.5, 3.0], [0.1, 0.2, 0.3, 0.4]]
LABELS = [[0, 2], [3, -1], [-1, -1]]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def excess(t, row, k):
    return sum(sigmoid(s + t) for s in row) - k


def by_loops(name):
    found = []
    for row, labels in zip(SCORES, LABELS, strict=True):
        relevant = [y for y in labels if y >= 0]
        negatives = [math.exp(s) for k, s in enumerate(row) if k not in relevant]
        if name == "BinaryCrossEntropy":
            found.append(sum(-math.log(sigmoid(s if k in relevant else -s)) for k, s in enumerate(row)))
            continue
        if not relevant:
            found.append(0.0)
            continue
        terms = []
        for y in relevant:
            if name == "MultiPositive":
                terms.append(-math.log(math.exp(row[y]) / sum(math.exp(s) for s in row)))
            elif name == "DecoupledSoftmax":
                terms.append(-math.log(math.exp(row[y]) / (math.exp(row[y]) + sum(negatives))))
            else:
                t = optimize.brentq(excess, -50, 50, (row, len(relevant)))
                terms.append(-math.log(sigmoid(row[y] + t)))
        found.append(sum(terms) / len(terms))
    return found


@pytest.mark.parametrize("kind", LOSSES)
def test_equals_loops_over_plain_floats(kind):
    scores, target = torch.tensor(SCORES), torch.tensor(LABELS)
    expected = torch.tensor(by_loops(kind.__name__))
    torch.testing.assert_close(kind(reduction="none")(scores, target), expected, rtol=1e-5, atol=1e-5)
    counted = 3 if kind is BinaryCrossEntropy else 2  # a row without labels does not count in a ranking
    torch.testing.assert_close(kind()(scores, target), expected.sum() / counted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_masks_and_lists_say_the_same(kind):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 9, generator=g)
    mask = torch.rand(20, 9, generator=g) < 0.3
    lists = torch.full((20, 9), -1)
    for i, row in enumerate(mask):
        labels = row.nonzero()[:, 0]
        lists[i, : len(labels)] = labels
    expected = kind()(scores, lists)
    torch.testing.assert_close(kind()(scores, mask), expected)
    torch.testing.assert_close(kind()(scores, mask.float()), expected)


@pytest.mark.parametrize("kind", [MultiPositive, DecoupledSoftmax])
def test_one_positive_is_cross_entropy(kind):
    g = torch.Generator().manual_seed(1)
    scores, y = torch.randn(8, 30, generator=g), torch.randint(30, (8,), generator=g)
    torch.testing.assert_close(kind()(scores, y[:, None]), F.cross_entropy(scores, y), rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("kind", LOSSES)
def test_extremes_stay_finite(kind):
    for size, dtype in ((1e4, torch.float32), (1e3, torch.bfloat16)):
        scores = (size * torch.tensor([[1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, 1.0, 0.0]])).to(dtype)
        scores.requires_grad_()
        loss = kind()(scores, torch.tensor([[0, 1], [3, -1]]))
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


def test_a_large_alpha_asks_for_the_k_best():
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.0]])
    loss = SoftTopK(k=2, alpha=1e3)
    assert float(loss(scores, torch.tensor([[0, 1]]))) < 1e-6
    assert float(loss(scores, torch.tensor([[2]]))) > 100


def test_what_a_target_may_not_be():
    scores = torch.randn(2, 4)
    for target, message in (
        (torch.full((2, 4), 0.5), "must hold 0 and 1, got 0.5"),
        (torch.ones(2, 3), r"must have shape \(2, 4\), got \(2, 3\)"),
        (torch.tensor([[4], [0]]), "holds the label 4"),
        (torch.tensor([[-2], [0]]), "holds the label -2"),
    ):
        with pytest.raises(ValueError, match=message):
            DecoupledSoftmax()(scores, target)
