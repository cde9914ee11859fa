"""Naive Bayes against scikit-learn, the normal density, and one fit against many."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.naive_bayes import GaussianNB
from torch.nn import functional as F

from logitkit.engine import Recipe, Trainer, prepare
from logitkit.heads import NaiveBayesHead, linear_eval_curve, two_regime_crossing

K, D = 4, 6


def sample(n=300, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), n, replacement=True, generator=g)
    centre = torch.randn(K, D, generator=g, dtype=torch.float64)
    spread = 0.5 + torch.rand(K, D, generator=g, dtype=torch.float64)
    return centre[y] + spread[y] * torch.randn(n, D, generator=g, dtype=torch.float64), y


def smoothed(y):
    return (np.bincount(y, minlength=K) + 1) / (len(y) + K)


def test_class_variances_are_scikit_learns():
    x, y = sample()
    head = NaiveBayesHead(D, K, shared_variance=False, eps=1e-30).fit(x, y)
    theirs = GaussianNB(priors=smoothed(y), var_smoothing=0.0).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(head(x).log_softmax(1), theirs.predict_log_proba(x.numpy()), atol=1e-10)


def test_shared_variance_is_the_log_density():
    x, y = sample()
    head = NaiveBayesHead(D, K, eps=1e-30).fit(x, y)
    means = np.stack([x[y == k].numpy().mean(0) for k in range(K)])
    sd = np.sqrt(np.mean((x.numpy() - means[y]) ** 2, axis=0))
    density = np.stack([norm.logpdf(x.numpy(), m, sd).sum(1) for m in means], axis=1) + np.log(smoothed(y))
    expected = density - np.logaddexp.reduce(density, axis=1, keepdims=True)
    np.testing.assert_allclose(head(x).log_softmax(1), expected, atol=1e-10)


def test_values_of_the_official_code():
    """GaussianNB of models/gaussnb.py in github.com/ML-GSAI/Revisiting-Dis-vs-Gen-Classifiers, without its
    1e-9 on variances: statistics of two fits in turn, and log-probabilities with its unsmoothed prior."""
    y = torch.tensor([0, 1, 2, 1, 2, 2, 1, 2, 0, 1] * 2)
    x = torch.arange(60).double().mul(1.7).sin().view(20, 3)
    x = x + y[:, None] * torch.tensor([0.6, -0.6, 0.3], dtype=torch.float64)
    head = NaiveBayesHead(3, 3, eps=1e-30, smoothing=1e-12).fit(x[:11], y[:11]).partial_fit(x[11:], y[11:])
    assert head.count.tolist() == [4, 8, 8]
    means = [
        [0.017862272262, -0.008705318929, -0.015619007432],
        [0.514650006968, -0.604723111889, 0.386567086958],
        [1.130667485496, -1.208234172488, 0.671454370084],
    ]
    torch.testing.assert_close(head.mean, torch.tensor(means, dtype=torch.float64), rtol=0, atol=1e-10)
    variances = [
        [0.214628251034, 0.714924520685, 0.369084925606],
        [0.361226072530, 0.694687977822, 0.247504341210],
        [0.709932339608, 0.263097298939, 0.738098041304],
    ]
    found = head.scatter / head.count[:, None]
    torch.testing.assert_close(found, torch.tensor(variances, dtype=torch.float64), rtol=0, atol=1e-10)
    test = torch.arange(12).double().mul(0.9).cos().view(4, 3)
    expected = [
        [-0.792261327176, -0.732133000686, -2.713593083575],
        [-0.621717634680, -0.833996445674, -3.551951271219],
        [-0.719866565700, -0.755284083114, -3.139471506049],
        [-0.701830464922, -0.784631581906, -3.035823883410],
    ]
    np.testing.assert_allclose(head(test).log_softmax(1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_ten_chunks_are_one_fit_also_far_from_zero(shared):
    x, y = sample()
    x = x + 1e6
    once = NaiveBayesHead(D, K, shared).fit(x, y)
    chunks = NaiveBayesHead(D, K, shared).fit(x[:7] * 0, y[:7]).fit(x[:30], y[:30])
    for start in range(30, 300, 30):
        chunks.partial_fit(x[start : start + 30], y[start : start + 30])
    torch.testing.assert_close(chunks(x), once(x), rtol=1e-8, atol=1e-8)
    variance = np.stack([x[y == k].numpy().var(0) for k in range(K)])
    np.testing.assert_allclose(chunks.scatter / chunks.count[:, None], variance, rtol=1e-8)


def test_as_linear_has_the_same_logits():
    x, y = sample()
    head = NaiveBayesHead(D, K).fit(x, y)
    linear = head.as_linear().double()
    torch.testing.assert_close(linear(x).log_softmax(1), head(x).log_softmax(1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="shared_variance=True"):
        NaiveBayesHead(D, K, shared_variance=False).as_linear()


@pytest.mark.parametrize("shared", [True, False])
def test_rescaling_features_changes_nothing(shared):
    x, y = sample()
    scale = torch.tensor([1e-4, 0.1, 1.0, 3.0, 1e3, 1e5], dtype=torch.float64)
    plain, scaled = NaiveBayesHead(D, K, shared, eps=0.1), NaiveBayesHead(D, K, shared, eps=0.1)
    expected = plain.fit(x, y)(x).log_softmax(1)
    torch.testing.assert_close(scaled.fit(x * scale, y)(x * scale).log_softmax(1), expected)


@pytest.mark.parametrize("shared", [True, False])
def test_constant_features_and_absent_classes(shared):
    x, y = sample()
    known = y != 2
    constant = torch.cat([x, torch.full((len(x), 1), 7.0, dtype=torch.float64)], dim=1)[known]
    head = NaiveBayesHead(D + 1, K, shared).fit(constant, y[known])
    without = NaiveBayesHead(D, K, shared).fit(x[known], y[known])
    torch.testing.assert_close(head(constant), without(x[known]))
    assert torch.isfinite(head(constant)).all()
    if not shared:
        everything = norm.logpdf(x[known].numpy(), x[known].numpy().mean(0), x[known].numpy().std(0))
        first = x[known & (y == 0)].numpy()
        zero = norm.logpdf(x[known].numpy(), first.mean(0), first.std(0)).sum(1)
        count = (y == 0).sum().item()
        expected = everything.sum(1) - zero - np.log(count + 1)
        difference = without(x[known])[:, 2] - without(x[known])[:, 0]
        np.testing.assert_allclose(difference, expected, atol=1e-4)


def test_training_answers_before_it_learns_and_forgets():
    x, y = sample()
    head = NaiveBayesHead(D, K, memory=0.5)
    first = head(x[:100], y[:100])
    torch.testing.assert_close(first, torch.full_like(first, -np.log(K)))
    torch.testing.assert_close(head.eval()(x), NaiveBayesHead(D, K).fit(x[:100], y[:100])(x))
    before = head(x)
    torch.testing.assert_close(head.train()(x[100:], y[100:]), before[100:])
    torch.testing.assert_close(
        head.count, y[:100].bincount(minlength=K) / 2 + y[100:].bincount(minlength=K).double()
    )
    assert torch.equal(head(x), head(x))  # without a target nothing is learned
    twice = NaiveBayesHead(D, K, memory=1.0)
    for _ in range(2):
        twice(x[:150], y[:150])
        twice(x[150:], y[150:])
    torch.testing.assert_close(twice.scatter / 2, NaiveBayesHead(D, K).fit(x, y).scatter)


def test_the_gradient_takes_the_statistics_as_constant():
    x, y = sample(40)
    head = NaiveBayesHead(D, K).fit(x, y)
    features = x[:5].clone().requires_grad_()
    F.cross_entropy(head(features, y[:5]), y[:5]).backward()
    weight = NaiveBayesHead(D, K).fit(x, y).as_linear().double()
    p = weight(x[:5]).softmax(1) - F.one_hot(y[:5], K)
    torch.testing.assert_close(features.grad, (p @ weight.weight.detach() / 5).detach(), rtol=1e-4, atol=1e-5)


def test_casting_does_not_round_what_was_learned():
    x, y = sample()
    head = NaiveBayesHead(D, K).fit(x, y)
    expected = head(x)
    torch.testing.assert_close(head.half().double()(x), expected, rtol=0, atol=0)
    assert head.half()(x.half()).dtype == torch.float32


def test_in_the_engine_on_fixed_features_it_is_the_closed_form():
    recipe = Recipe.of(model="linear", head="naive_bayes(memory=1.0)", data="mixture:n=300,dim=6", epochs=2)
    prepared = prepare(recipe)
    head = Trainer(recipe, prepared).run().head
    expected = NaiveBayesHead(6, 10).fit(*prepared.train)
    torch.testing.assert_close(head.mean, expected.mean)
    torch.testing.assert_close(head.scatter, 2 * expected.scatter)


def test_curve_and_crossing():
    x, y = sample()

    def nearest_mean(a, b):
        return NaiveBayesHead(D, K).fit(a, b)

    curve = linear_eval_curve(x, y, [50, 200], {"nb": nearest_mean}, (x, y))
    expected = [(nearest_mean(x[:m], y[:m])(x).argmax(1) != y).double().mean().item() for m in (50, 200)]
    assert curve == {"nb": expected}
    assert two_regime_crossing([10, 100, 1000], [0.2, 0.2, 0.2], [0.4, 0.3, 0.1]) == pytest.approx(10**2.5)
    assert two_regime_crossing([10, 100], [0.2, 0.2], [0.4, 0.3]) is None
    assert two_regime_crossing([10, 100], [0.2, 0.2], [0.1, 0.1]) is None


@pytest.mark.parametrize("bad", [{"eps": 0.0}, {"smoothing": 0.0}, {"memory": 0.0}, {"memory": 1.1}], ids=str)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NaiveBayesHead(D, K, **bad)


def test_bad_examples():
    x, y = sample(10)
    with pytest.raises(ValueError, match="NaN"):
        NaiveBayesHead(D, K).fit(x * torch.nan, y)
    with pytest.raises(ValueError, match="label 9"):
        NaiveBayesHead(D, K).fit(x, y * 0 + 9)
