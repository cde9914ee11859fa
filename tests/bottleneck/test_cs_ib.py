"""Cauchy-Schwarz quantities against loops, closed forms, and numbers of the authors' code."""

import math

import pytest
import torch

from logitkit.bottleneck import CSIB, conditional_cs, cs_qmi, gaussian_gram, median_sigma
from logitkit.engine import Recipe, run


def official():
    """x (5, 2), t (5, 3), y (5,) and a prediction, as sines and cosines."""
    i = torch.arange(10).double()
    t = torch.cos(i[:5] * 2.1)[:, None] * torch.tensor([[1.0, 0.5, 2.0]]).double()
    y = torch.sin(i[:5])
    return torch.sin(i * 1.3).view(5, 2), t, y, y + 0.3 * torch.cos(i[:5] * 3)


def test_values_of_the_official_code():
    """CS_QMI, CS_QMI_normalized and CS_Div of github.com/SJYuCNEL/Cauchy-Schwarz-Information-Bottleneck."""
    x, t, y, guess = official()
    assert cs_qmi(x, t).item() == pytest.approx(0.44848929019350114, rel=1e-9)
    assert cs_qmi(x, t, 0.5).item() == pytest.approx(0.8585271744130938, rel=1e-9)
    assert cs_qmi(x, t, normalized=True).item() == pytest.approx(0.7012367403861348, rel=1e-9)
    for sigma, expected in ((1.0, 0.0389182154204617), (0.5, 0.4195691544796656)):
        found = conditional_cs(x, y, guess, sigma, "sum_of_squares")
        assert found.item() == pytest.approx(expected, rel=1e-8)
    loss = CSIB(beta=0.1, denominator="sum_of_squares")(guess, y, t, x)
    assert loss.item() == pytest.approx(0.0389182154204617 + 0.1 * 0.7012367403861348, rel=1e-8)


def kernel(a, b, s):
    a, b = (v if v.ndim else v[None] for v in (a, b))
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * s * s))


def test_information_is_a_triple_loop():
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn(6, d, generator=generator, dtype=torch.float64) for d in (3, 2))
    n = range(6)
    k = [[kernel(x[i], x[j], 0.8) for j in n] for i in n]
    m = [[kernel(t[i], t[j], 1.5) for j in n] for i in n]
    joint = sum(k[i][j] * m[i][j] for i in n for j in n) / 6**2
    apart = sum(k[i][j] for i in n for j in n) * sum(m[i][j] for i in n for j in n) / 6**4
    cross = sum(k[i][j] * m[i][h] for i in n for j in n for h in n) / 6**3
    expected = math.log2(joint) + math.log2(apart) - 2 * math.log2(cross)
    assert cs_qmi(x, t, (0.8, 1.5)).item() == pytest.approx(expected, abs=1e-9)


def test_information_is_symmetric_non_negative_and_zero_for_a_constant():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x, t = (torch.randn(20, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        assert cs_qmi(x, t) >= 0
        torch.testing.assert_close(cs_qmi(x, t), cs_qmi(t, x))
    assert cs_qmi(x, torch.ones_like(t)).item() == pytest.approx(0, abs=1e-6)
    assert cs_qmi(x, torch.ones_like(t), normalized=True).item() == pytest.approx(0, abs=1e-6)
    assert cs_qmi(x, x, normalized=True).item() == pytest.approx(1)


@pytest.mark.parametrize("denominator", ["squared_sum", "sum_of_squares"])
def test_divergence_is_a_loop_and_zero_only_for_the_truth(denominator):
    x, _, y, guess = official()

    def term(a, b):
        total = 0.0
        for j in range(5):
            row = [kernel(x[j], x[i], 0.7) for i in range(5)]
            below = sum(row) ** 2 if denominator == "squared_sum" else sum(v * v for v in row)
            total += sum(row[i] * kernel(a[j], b[i], 0.7) for i in range(5)) / below
        return math.log2(total)

    expected = term(y, y) + term(guess, guess) - 2 * term(guess, y)
    assert conditional_cs(x, y, guess, 0.7, denominator).item() == pytest.approx(expected, abs=1e-9)
    assert expected > 0.01
    assert conditional_cs(x, y, y, 0.7, denominator).item() == pytest.approx(0, abs=1e-9)


def test_without_inputs_it_is_the_divergence_of_two_normals():
    """The kernel is the overlap of two normals of variance sigma^2 / 2, which each variance grows by."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2000, generator=generator, dtype=torch.float64)
    q = 1.5 + 0.7 * torch.randn(2000, generator=generator, dtype=torch.float64)
    sigma = 0.2
    v, w = 1 + sigma**2 / 2, 0.49 + sigma**2 / 2

    def overlap(distance, variance):
        return math.exp(-(distance**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    expected = math.log2(overlap(0, 2 * v) * overlap(0, 2 * w) / overlap(1.5, v + w) ** 2)
    found = conditional_cs(torch.zeros(2000, 1, dtype=torch.float64), p, q, sigma).item()
    assert found == pytest.approx(expected, rel=0.05)


def test_gradients():
    x, t, y, guess = official()
    guess.requires_grad_(), t.requires_grad_()
    assert torch.autograd.gradcheck(lambda g, c: CSIB(beta=0.5)(g, y, c, x), (guess, t))


def test_columns_do_not_broadcast():
    x, t, y, guess = official()
    torch.testing.assert_close(CSIB()(guess[:, None], y, t, x), CSIB()(guess, y[:, None], t, x))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_extreme_predictions_are_finite(dtype, size):
    x, t, y, guess = (v.to(dtype) for v in official())
    guess = (guess * size).requires_grad_()
    loss = CSIB()(guess, y, t, x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(guess.grad).all()


def test_median_sigma():
    x = torch.tensor([[0.0], [1.0], [5.0]])
    assert median_sigma(x) == 4.0
    assert median_sigma(torch.zeros(3, 2)) == 0.01
    torch.testing.assert_close(gaussian_gram(x[:1], x[1:2], 2.0), torch.tensor([[math.exp(-1 / 8)]]))


def test_trains_through_the_engine():
    result = run(Recipe.of(data="friedman:n=300", loss="cs_ib", epochs=20, lr=3e-3))
    assert result.metrics["r2"] > 0.3


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"sigma": 0.0}, {"denominator": "sum"}], ids=str)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        CSIB(**bad)


def test_bad_rows():
    x, t, y, guess = official()
    with pytest.raises(ValueError, match=r"inputs must have shape \(5, ...\)"):
        CSIB()(guess, y, t, x[:4])
    with pytest.raises(ValueError, match="embeddings contain NaN"):
        CSIB()(guess, y, t * math.nan, x)
