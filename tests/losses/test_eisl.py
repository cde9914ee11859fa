"""EISL against loops over plain floats, the authors' numbers, and what edits do to it."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import EISLLoss, eisl_matching

LOGITS = 3 * torch.sin(1.7 * torch.arange(60.0)).reshape(2, 6, 5)
LABELS = torch.tensor([[0, 3, 1, 4, 2, 2], [2, 2, 1, 0, 4, 3]])


def looped(logits, labels, n, tau=1.0, clamp=-20.0):
    """L_n of one sequence without ignored labels, in plain floats."""
    time = len(labels)
    log_p = [[v - math.log(sum(math.exp(u) for u in row)) for v in row] for row in logits.tolist()]
    z = [[max(log_p[i][y], clamp) for y in labels.tolist()] for i in range(time)]
    count, value = time - n + 1, 0.0
    for j in range(count):
        s = [sum(z[i + k][j + k] for k in range(n)) / n for i in range(count)]
        total = sum(math.exp(v / tau) for v in s)
        value -= sum(v * math.exp(v / tau) / total for v in s) / count
    return value


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_a_loop_over_plain_floats(n):
    found = EISLLoss([n], noise=False, tau=0.7, clamp=-2.0, reduction="none")(LOGITS.double(), LABELS)
    expected = [looped(x, y, n, 0.7, -2.0) for x, y in zip(LOGITS, LABELS, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_values_of_the_official_code():
    """batch_log_EISL_cnn of github.com/guangyliu/EISL on these numbers, with Gumbel noise of 0."""
    numbers = {(2,): 1.7519019842, (2, 3, 4): 2.1043760777, (1,): 0.8470171094, (6,): 2.8346562386,
               (5,): 2.4914896488}  # fmt: skip
    for ngrams, expected in numbers.items():
        assert EISLLoss(ngrams, noise=False)(LOGITS, LABELS).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [0, 6, 9])
@pytest.mark.parametrize("noise", [False, True])
def test_the_whole_sequence_as_one_ngram_is_cross_entropy(n, noise):
    expected = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(EISLLoss([n], noise=noise)(LOGITS, LABELS), expected)
    torch.testing.assert_close(EISLLoss(ngram_weight=0.0, ce_weight=0.3)(LOGITS, LABELS), 0.3 * expected)


def test_lengths_relative_to_each_sequence():
    labels = LABELS.clone()
    labels[1, 4:] = -100
    found = EISLLoss([-1], noise=False, reduction="none")(LOGITS, labels)
    expected = [looped(LOGITS[0], LABELS[0], 5), looped(LOGITS[1, :4], LABELS[1, :4], 3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_single_tokens_know_no_order():
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    loss = EISLLoss([1], noise=False)
    torch.testing.assert_close(loss(LOGITS, LABELS[:, order]), loss(LOGITS, LABELS))
    assert EISLLoss([2], noise=False)(LOGITS, LABELS[:, order]) != EISLLoss([2], noise=False)(LOGITS, LABELS)


def test_a_shifted_output_shifts_the_matching():
    z = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(1, 6, dtype=torch.bool)
    s, w = eisl_matching(z, kept, 2)
    moved, _ = eisl_matching(z.roll(1, dims=1), kept, 2)
    torch.testing.assert_close(moved[0, 1:5], s[0, :4])
    torch.testing.assert_close(w[0, :, :5].sum(dim=0), torch.ones(5))
    assert w[0, 5].abs().sum() == w[0, :, 5].abs().sum() == 0


def test_a_shift_by_one_costs_little_where_cross_entropy_is_lost():
    target = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    output = 12.0 * F.one_hot(target.roll(1, dims=1), 8)
    assert F.cross_entropy(output[0], target[0]) > 10
    assert EISLLoss([2], noise=False)(output, target) < 2  # all 2-grams but the one across the seam


def test_what_is_ignored_changes_nothing():
    loss = EISLLoss((2, 3, -1), ce_weight=0.2, noise=False)
    wide = F.pad(LOGITS, (0, 0, 2, 3), value=7.0).requires_grad_()
    value = loss(wide, F.pad(LABELS, (2, 3), value=-100))
    torch.testing.assert_close(value, loss(LOGITS, LABELS))
    value.backward()
    assert wide.grad[:, :2].abs().sum() == wide.grad[:, 8:].abs().sum() == 0
    more = torch.cat([LOGITS, LOGITS[:1]]), torch.cat([LABELS, torch.full((1, 6), -100)])
    torch.testing.assert_close(loss(*more), loss(LOGITS, LABELS))
    assert loss(LOGITS, torch.full_like(LABELS, -100)) == 0


def test_ngrams_do_not_cross_a_gap():
    labels = torch.tensor([[0, 3, -100, 4, 2, 2]])
    log_p = F.log_softmax(LOGITS[0].double(), dim=-1)
    starts, value = [0, 3, 4], 0.0
    for j in starts:
        s = torch.stack([(log_p[i, labels[0, j]] + log_p[i + 1, labels[0, j + 1]]) / 2 for i in starts])
        value -= float((s.softmax(0) * s).sum()) / len(starts)
    assert EISLLoss([2], noise=False)(LOGITS[:1], labels).item() == pytest.approx(value, rel=1e-5)


def test_the_noise_is_gumbel_and_only_in_training():
    torch.manual_seed(0)
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64).expand(4000, 2, 2)
    loss = EISLLoss([1], reduction="none")
    logits, labels = torch.log_softmax(z, dim=2), torch.tensor([[0, 1]]).expand(4000, 2)
    # The difference of two Gumbel variables is logistic; its distribution function at x is sigmoid(x).
    grid = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.float64)
    right, wrong = math.log(1 / (1 + math.exp(-1))), math.log(1 / (1 + math.exp(1)))
    share = torch.sigmoid(right - wrong + torch.logit(grid)).mean()
    expected = -(share * right + (1 - share) * wrong).item()
    assert loss(logits, labels).mean().item() == pytest.approx(expected, abs=0.01)
    assert loss(logits, labels).std() > 0.05
    assert loss.eval()(logits, labels).std() < 1e-12


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_large_logits_stay_finite(dtype, size):
    logits = (size * torch.sign(LOGITS)).to(dtype).requires_grad_()
    value = EISLLoss(ce_weight=0.1)(logits, LABELS)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="at least one length"):
        EISLLoss(())
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        EISLLoss(tau=0)
    with pytest.raises(ValueError, match="at least 0"):
        EISLLoss(ce_weight=-1)
