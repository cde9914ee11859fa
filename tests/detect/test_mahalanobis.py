"""The Mahalanobis detector against numpy, scikit-learn, and its invariances."""

import copy

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from logitkit.detect import Mahalanobis, MahalanobisEnsemble


def sample(n=120, d=5, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    y[: n // 4] = 0  # unequal classes
    mixing = torch.randn(d, d, generator=g, dtype=torch.float64)
    centres = 2 * torch.randn(classes, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mixing + centres[y], y


def test_distances_are_the_equation():
    x, y = sample()
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    centred = x.numpy() - means[y]
    inverse = np.linalg.inv(centred.T @ centred / len(x))
    gap = x.numpy()[:, None] - means
    expected = np.einsum("bcd,de,bce->bc", gap, inverse, gap)
    fitted = Mahalanobis(shrinkage=0).fit(x, y)
    np.testing.assert_allclose(fitted.distances(x), expected, rtol=1e-9)
    np.testing.assert_allclose(fitted.score(x), expected.min(1), rtol=1e-9)
    assert (fitted.predict(x).numpy() == expected.argmin(1)).all()


def test_with_priors_it_is_linear_discriminant_analysis():
    x, y = sample()
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    fitted = Mahalanobis(shrinkage=0).fit(x, y)
    posterior = (y.bincount().double().log() - fitted.distances(x) / 2).softmax(1)
    np.testing.assert_allclose(posterior, reference.predict_proba(x.numpy()), atol=1e-6)


def test_unchanged_under_invertible_affine_maps():
    x, y = sample()
    a, b = torch.randn(5, 5, dtype=torch.float64) + 3 * torch.eye(5), torch.randn(5, dtype=torch.float64)
    before = Mahalanobis(shrinkage=0).fit(x, y).score(x)
    mapped = x @ a + b
    after = Mahalanobis(shrinkage=0).fit(mapped, y).score(mapped)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_shrinkage_adds_a_share_of_the_mean_variance():
    x, y = sample()
    fitted = Mahalanobis(shrinkage=0.5).fit(x, y)
    s = fitted.covariance + 0.5 * fitted.covariance.trace() / 5 * torch.eye(5)
    torch.testing.assert_close(fitted.whitening @ fitted.whitening.T, torch.linalg.inv(s))


def test_far_points_are_abnormal():
    x, y = sample()
    fitted = Mahalanobis().fit(x.float(), y)
    assert fitted.score(x.float() + 50).min() > fitted.score(x.float()).max()
    assert fitted.score(x.bfloat16()).dtype == torch.float32


def test_add_class_averages_the_covariances():
    x, y = sample(200, classes=4)
    fitted = Mahalanobis(shrinkage=0).fit(x[y < 3], y[y < 3])
    old, new = fitted.covariance, x[y == 3]
    fitted.add_class(new)
    torch.testing.assert_close(fitted.means[3], new.mean(0))
    torch.testing.assert_close(fitted.covariance, 0.75 * old + 0.25 * torch.cov(new.T, correction=0))
    assert (fitted.predict(new) == 3).float().mean() > 0.8


def test_state_dict_restores_into_an_unfitted_detector():
    x, y = sample()
    fitted, other = Mahalanobis().fit(x, y), Mahalanobis()
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other.score(x), fitted.score(x))


def test_errors():
    x, y = sample()
    with pytest.raises(ValueError, match="covariance of 6 features is singular"):
        Mahalanobis(shrinkage=0).fit(torch.cat([x, x[:, :1]], dim=1), y)
    Mahalanobis().fit(torch.cat([x, 0 * x[:, :1]], dim=1), y)
    with pytest.raises(ValueError, match="class 1 has no examples"):
        Mahalanobis().fit(x, 2 * y)
    with pytest.raises(ValueError, match="got None"):
        Mahalanobis().fit(x)
    with pytest.raises(ValueError, match="must be fitted"):
        Mahalanobis().score(x)
    with pytest.raises(ValueError, match="shrinkage"):
        Mahalanobis(-1.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.act = nn.Tanh()
        self.last = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.last(self.act(self.conv(x)).mean((2, 3))))


@pytest.fixture
def images():
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    return 0.3 * torch.randn(90, 1, 6, 6) + y[:, None, None, None], y


def test_ensemble_layers_are_pooled_detectors(images):
    x, y = images
    model = Net().train()
    ensemble = MahalanobisEnsemble(model, ["act", "last"]).fit(x, y)
    assert model.training
    pooled = model.act(model.conv(x)).mean((2, 3))
    first = Mahalanobis().fit(pooled.detach(), y)
    torch.testing.assert_close(ensemble.layer_scores(x)[:, 0], first.score(pooled.detach()).double())
    assert (ensemble.predict(x) == y).float().mean() > 0.9
    assert not any(p.grad is not None for p in model.parameters())


def test_ensemble_nudge_lowers_every_layers_distance(images):
    x, y = images
    plain = MahalanobisEnsemble(Net(), ["act", "last"]).fit(x, y)
    nudged = copy.deepcopy(plain)
    nudged.eps = 1e-3
    untouched = x.clone()
    before, after = plain.layer_scores(x), nudged.layer_scores(x)
    assert torch.equal(x, untouched)
    assert (after < before).all()


def test_ensemble_weights_separate_what_it_was_shown(images):
    x, y = images
    ensemble = MahalanobisEnsemble(Net(), ["act", "last"], eps=1e-3).fit(x, y)
    odd = 8 * torch.randn(60, 1, 6, 6)
    ensemble.fit_ensemble(x[:60], odd)
    torch.testing.assert_close(ensemble.score(x), ensemble.layer_scores(x) @ ensemble.weights + ensemble.bias)
    assert (ensemble.score(odd) > 0).float().mean() > 0.8
    assert (ensemble.score(x[60:]) < 0).float().mean() > 0.9


def test_ensemble_unknown_layer():
    with pytest.raises(ValueError, match=r"\['nope'\]; it has conv, act, last, drop"):
        MahalanobisEnsemble(Net(), ["act", "nope"])
