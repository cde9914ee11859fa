"""Random-feature attention against loops, its infinite limit, and another solver."""

import math

import pytest
import torch

from logitkit.theory import RandomFeatureAttention, RandomFeatureMLP, attention_features, attention_kernel


def rows(n, tokens=4, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, tokens, dim, generator=g, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def test_features_are_the_loop():
    x, w = rows(3), torch.randn(5, 3, 3, dtype=torch.float64)
    found = attention_features(x, w)
    for n in range(3):
        for m in range(5):
            total = torch.zeros(3, dtype=torch.float64)
            for i in range(1, 4):
                score = sum(float(x[n, 0, a] * w[m, a, b] * x[n, i, b]) for a in range(3) for b in range(3))
                total += max(score, 0.0) * x[n, i] / 3
            torch.testing.assert_close(found[n, m], total)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_kernel_is_the_mean_of_many_features(scale):
    """Within four standard errors of 50 000 draws."""
    x, other = scale * rows(3, seed=1), rows(2, seed=2)
    g = torch.Generator().manual_seed(3)
    w = torch.randn(50_000, 3, 3, generator=g, dtype=torch.float64)
    products = torch.einsum("nmd,kmd->nkm", attention_features(x, w), attention_features(other, w))
    error = products.std(-1) / math.sqrt(products.shape[-1])
    assert ((products.mean(-1) - attention_kernel(x, other)).abs() <= 4 * error).all()


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_the_order_of_the_keys_does_not_matter(bias):
    x, y = rows(40), torch.randn(40, dtype=torch.float64)
    fitted = RandomFeatureAttention(16, bias).fit(x, y)
    torch.testing.assert_close(fitted.predict(x[:, [0, 3, 1, 2]]), fitted.predict(x), rtol=1e-12, atol=1e-12)
    assert (fitted.predict(x[:, [1, 0, 2, 3]]) - fitted.predict(x)).abs().max() > 1e-3


def test_the_bias_is_added_to_every_weight():
    x, y = rows(30), torch.randn(30, dtype=torch.float64)
    plain, biased = (RandomFeatureAttention(8, b).fit(x, y).weight for b in (0.0, 2.0))
    torch.testing.assert_close(biased - plain, 2 * torch.eye(3, dtype=torch.float64).expand(8, 3, 3))


@pytest.mark.parametrize("count", [3, 30])  # fewer and more coefficients than rows
@pytest.mark.parametrize("part", [RandomFeatureAttention, RandomFeatureMLP])
def test_ridge_is_that_of_the_normal_equations(part, count):
    x, y = rows(40), torch.randn(40, dtype=torch.float64)
    fitted = part(count, l2=0.1).fit(x, y)
    phi = fitted.features(x)
    stacked = torch.cat([phi, math.sqrt(0.1) * torch.eye(phi.shape[1], dtype=phi.dtype)])
    target = torch.cat([y, y.new_zeros(phi.shape[1])])
    expected = torch.linalg.lstsq(stacked, target[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(fitted.coefficients, expected)


@pytest.mark.parametrize("count", [3, 30])
def test_without_a_penalty_it_is_the_least_norm_solution(count):
    x, y = rows(40), torch.randn(40, dtype=torch.float64)
    fitted = RandomFeatureAttention(count, l2=0.0).fit(x, y)
    phi = fitted.features(x)
    expected = torch.linalg.lstsq(phi, y[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(fitted.coefficients, expected, rtol=1e-6, atol=1e-8)
    near = RandomFeatureAttention(count, l2=1e-10).fit(x, y)
    torch.testing.assert_close(near.predict(x), fitted.predict(x), rtol=1e-4, atol=1e-4)


def test_the_mlp_sees_everything_side_by_side():
    x, y = rows(20), torch.randn(20, dtype=torch.float64)
    fitted = RandomFeatureMLP(7).fit(x, y)
    expected = (x.reshape(20, 12) @ fitted.weight.T).clamp(min=0)
    torch.testing.assert_close(fitted.features(x), expected)
    assert fitted.coefficients.shape == (7,)


def test_settings_and_calls_that_cannot_be():
    x, y = rows(5), torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="features must be at least 1"):
        RandomFeatureAttention(0)
    with pytest.raises(ValueError, match="l2 must not be negative"):
        RandomFeatureMLP(l2=-1.0)
    with pytest.raises(ValueError, match="once it is fitted"):
        RandomFeatureAttention().predict(x)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        RandomFeatureAttention().fit(x[:, :1], y)
    with pytest.raises(ValueError, match="12 numbers per row, got 9"):
        RandomFeatureMLP(4).fit(x, y).predict(x[:, :3])
