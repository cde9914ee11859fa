"""The ordinal head against plain sigmoids and loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.engine import Recipe, run
from logitkit.heads import (
    MultitaskOrdinalHead,
    OrdinalHead,
    ordinal_cross_entropy,
    ordinal_log_softmax,
    ranked_probability_score,
)

CUTS = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)


def scores():
    return torch.tensor([-3.0, -0.2, 0.0, 1.7, 6.0], dtype=torch.float64)


def test_probabilities_are_differences_of_sigmoids():
    above = torch.sigmoid(scores()[:, None] + CUTS)
    ends = torch.ones(5, 1, dtype=torch.float64)
    bounds = torch.cat([ends, above, 0 * ends], dim=1)
    p = ordinal_log_softmax(scores(), CUTS).exp()
    torch.testing.assert_close(p, bounds[:, :-1] - bounds[:, 1:])
    torch.testing.assert_close(p.sum(1), ends[:, 0])
    assert (p >= 0).all()


def test_loss_is_a_binary_cross_entropy_for_every_cut():
    y = torch.tensor([0, 1, 2, 3, 1])
    expected = []
    for score, label in zip(scores().tolist(), y.tolist(), strict=True):
        s = [1 / (1 + math.exp(-(score + c))) for c in CUTS.tolist()]
        expected.append(-sum(math.log(s[k - 1] if label >= k else 1 - s[k - 1]) for k in (1, 2, 3)))
    found = ordinal_cross_entropy(ordinal_log_softmax(scores(), CUTS), y)
    torch.testing.assert_close(found, torch.tensor(expected).double())
    levels = (y[:, None] >= torch.arange(1, 4)).double()
    logits = scores()[:, None] + CUTS
    binary = F.binary_cross_entropy_with_logits(logits, levels, reduction="none").sum(1)
    torch.testing.assert_close(found, binary)


def test_probabilities_loss_and_gradients_of_the_official_code():
    """CoralOrdinal, ordinal_softmax and OrdinalCrossEntropy of coral_ordinal in github.com/ck37/coral-ordinal
    (float32, TensorFlow 2.21) with these weights and cuts."""
    x = torch.arange(15).double().mul(0.8).sin().view(5, 3).requires_grad_()
    cuts = torch.tensor([1.5, 0.3, -0.9], dtype=torch.float64)
    head = OrdinalHead(3, 4).double()
    head.weight.data = torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64)
    head.first.data = cuts[:1]
    head.gaps.data = (-cuts.diff()).expm1().log()
    log_p = head(x)
    probabilities = [
        [0.198184490, 0.252555847, 0.280774117, 0.268485546],
        [0.114184141, 0.185522199, 0.287227273, 0.413066387],
        [0.311501503, 0.288840771, 0.232637063, 0.167020664],
        [0.119853616, 0.191495955, 0.288822563, 0.399827868],
        [0.185636640, 0.245156646, 0.284530878, 0.284675837],
    ]
    torch.testing.assert_close(log_p.exp(), torch.tensor(probabilities).double(), rtol=0, atol=1e-6)
    y = torch.tensor([0, 3, 1, 2, 3])
    each = [2.7280592918, 1.3616485596, 1.0662441254, 1.0112271309, 2.0252645016]
    assert head.loss(log_p, y, "none").tolist() == pytest.approx(each, rel=1e-6)
    loss = head.loss(log_p, y)
    loss.backward()
    assert loss.item() == pytest.approx(1.63848876953125, rel=1e-6)
    assert x.grad[0].tolist() == pytest.approx([0.38869467, -0.22673854, 0.12956488], abs=1e-6)
    assert x.grad[4].tolist() == pytest.approx([-0.31962103, 0.18644558, -0.10654034], abs=1e-6)
    assert head.weight.grad.tolist() == pytest.approx([-0.14459182, 0.42611191, 0.73834181], abs=1e-6)
    # the gaps count from the first cut, so that its gradient is the sum of those of their three
    assert head.first.grad.item() == pytest.approx(0.014127899 - 0.018586323 - 0.093384705, abs=1e-6)


def test_two_classes_are_logistic_regression():
    torch.manual_seed(0)
    head, x, y = OrdinalHead(3, 2), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    logit = x @ head.weight + head.cuts
    torch.testing.assert_close(head.loss(head(x), y), F.binary_cross_entropy_with_logits(logit, y.float()))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_starts_uniform_with_falling_cuts(classes):
    head = OrdinalHead(3, classes)
    torch.testing.assert_close(head(torch.zeros(1, 3)).exp(), torch.full((1, classes), 1 / classes))
    torch.nn.init.normal_(head.gaps, std=5)
    assert (head.cuts.diff() < 0).all()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_extreme_features_are_finite(dtype, size):
    head = OrdinalHead(2, 4).to(dtype)
    x = (torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) * size).to(dtype).requires_grad_()
    loss = head.loss(head(x), torch.tensor([0, 3])) + F.cross_entropy(head(x), torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_ranked_probability_score_by_hand():
    p = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([((0.2 - 0) ** 2 + (0.7 - 1) ** 2) / 2, 0.0, 1.0])
    torch.testing.assert_close(ranked_probability_score(p, torch.tensor([1, 0, 0])), expected)


def test_several_items_are_several_heads_and_missing_ratings_count_nothing():
    torch.manual_seed(0)
    part, x = MultitaskOrdinalHead(3, items=2, num_classes=4), torch.randn(5, 3)
    ratings = torch.tensor([[0, -1], [3, 2], [-1, -1], [1, 0], [2, 3]])
    log_p = part(x)
    losses = []
    for item, head in enumerate(part.heads):
        rated = ratings[:, item] >= 0
        losses.append(head.loss(head(x[rated]), ratings[rated, item], reduction="none"))
        p = head(x).exp()
        torch.testing.assert_close(part.expected(log_p)[:, item], p[:, 1] + 2 * p[:, 2] + 3 * p[:, 3])
    torch.testing.assert_close(part.loss(log_p, ratings), torch.cat(losses).mean())
    assert part.loss(log_p, torch.full((5, 2), -1)) == 0
    with pytest.raises(ValueError, match=r"ratings must have shape \(5, 2\)"):
        part.loss(log_p, ratings[:4])


def test_trains_through_the_engine():
    result = run(Recipe.of(data="ratings:n=300", model="linear", head="ordinal", epochs=20, lr=0.03))
    assert result.metrics["accuracy"] > 0.4


def test_bad_input():
    with pytest.raises(ValueError, match="num_classes"):
        OrdinalHead(3, 1)
    with pytest.raises(ValueError, match="4 columns"):
        OrdinalHead(3, 4).loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="label 3"):
        ranked_probability_score(torch.rand(1, 3), torch.tensor([3]))
