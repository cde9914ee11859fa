import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import DCOLoss, dco, dco_sequence, overconfidence_factor, pass_at_n, unbiased_pass_at_k


def logits_with(p):
    """Two-class logits that give label 0 probability p, exact at both ends."""
    p = torch.as_tensor(p, dtype=torch.float64)
    return torch.stack([p.log() - torch.log1p(-p), torch.zeros_like(p)], dim=-1)


P = [1e-12, 1e-9, 1e-4, 0.01, 0.3, 0.9, 1 - 1e-6]
ZEROS = torch.zeros(len(P), dtype=torch.long)


def test_one_sample_is_cross_entropy():
    logits, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    torch.testing.assert_close(DCOLoss(N=1)(logits, y), F.cross_entropy(logits, y))
    tokens, labels = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(0, 5, (3, 4))
    labels[0, 2:] = -100
    summed = F.cross_entropy(tokens.transpose(1, 2), labels, reduction="none").sum(1)
    torch.testing.assert_close(dco_sequence(tokens, labels, N=1), summed)


@pytest.mark.parametrize("N", [1, 4, 256, 10_000])
def test_gradient_is_cross_entropys_times_the_factor(N):
    logits = logits_with(P).requires_grad_()
    (gradient,) = torch.autograd.grad(dco(logits, ZEROS, N).sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, ZEROS, reduction="sum"), logits)
    factor = overconfidence_factor(torch.tensor(P, dtype=torch.float64), N)
    torch.testing.assert_close(gradient, factor[:, None] * plain, rtol=1e-6, atol=1e-12)


def test_value_is_minus_log_of_the_chance_of_success():
    p = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    torch.testing.assert_close(dco(logits_with(p), ZEROS[:3], 16), -(1 - (1 - p) ** 16).log())
    torch.testing.assert_close(pass_at_n(p, 16), 1 - (1 - p) ** 16)


@pytest.mark.parametrize("log_p", [-30.0, -59.9, -60.1, -2e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_answers_lose_log_n(log_p, dtype):
    logits = torch.tensor([[log_p, 0.0]], dtype=dtype)
    expected = -math.log(16) - log_p
    assert dco(logits, torch.tensor([0]), 16).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("N", [1, 1.5, 16])
def test_certain_answers_have_no_loss_and_no_gradient(N):
    logits = torch.tensor([[300.0, 0.0], [1e4, -1e4]], requires_grad=True)
    loss = dco(logits, torch.tensor([0, 0]), N)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(loss, torch.zeros(2))
    torch.testing.assert_close(gradient, torch.zeros(2, 2))


def test_a_sequence_is_one_answer():
    logits, labels = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, -100], [3, 2, 1]])
    log_p = logits.log_softmax(-1)
    p = torch.stack([log_p[0, 0, 0] + log_p[0, 1, 1], log_p[1, 0, 3] + log_p[1, 1, 2] + log_p[1, 2, 1]]).exp()
    torch.testing.assert_close(dco_sequence(logits, labels, 8), -(1 - (1 - p) ** 8).log())
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(2, 2\)"):
        dco_sequence(logits, labels[:, :2], 8)


def test_overconfidence_factor_at_the_ends():
    p = torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1.0, 8 * 0.5**8 / (1 - 0.5**8), 0.0], dtype=torch.float64)
    torch.testing.assert_close(overconfidence_factor(p, 8), expected)
    assert (overconfidence_factor(p, 1) == 1).all()


def test_unbiased_pass_at_k_counts_subsets():
    n = 7
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [set(s) & set(range(c)) for s in itertools.combinations(range(n), k)]
        assert unbiased_pass_at_k(n, c, k) == pytest.approx(sum(map(bool, right)) / len(right))
    with pytest.raises(ValueError, match="n=3, c=4"):
        unbiased_pass_at_k(3, 4, 1)


def test_refuses_less_than_one_sample():
    with pytest.raises(ValueError, match=r"N must be at least 1 and finite, got 0\.5"):
        DCOLoss(N=0.5)
