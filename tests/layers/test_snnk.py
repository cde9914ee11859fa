"""Kernel layers: features against closed forms over many draws, folding, and the closed-form fit."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from logitkit.layers import URFSNNK, FullyBundled, ReLUSNNK, SNNKAdapter, bundle, exp_features, relu_features
from logitkit.layers.snnk import gaussian_rows


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arc_cosine(x, w):
    t = torch.arccos(x @ w / x.norm() / w.norm())
    return x.norm() * w.norm() * (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_relu_features_estimate_the_arc_cosine_kernel(orthogonal):
    torch.manual_seed(0)
    x, w, m = draw(6), draw(6, seed=1), 4000
    g = gaussian_rows(m, 6, orthogonal).double()
    products = m * relu_features(x, g) * relu_features(w, g)
    error = products.std() / math.sqrt(m)  # orthogonal rows only lower it
    assert abs(products.mean() - arc_cosine(x, w)) < 4 * error


def test_variance_falls_as_one_over_m():
    torch.manual_seed(0)
    x, w = draw(6).float(), draw(6, seed=1).float()
    sizes = [16, 64, 256, 1024]
    variances = []
    for m in sizes:
        g = torch.randn(400 * m, 6).view(400, m, 6)
        estimates = ((g @ x).relu() * (g @ w).relu()).mean(1)
        part = torch.stack([(relu_features(x, each) * relu_features(w, each)).sum() for each in g[:3]])
        torch.testing.assert_close(part, estimates[:3])
        variances.append(estimates.var().item())
    slope = np.polyfit(np.log(sizes), np.log(variances), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize(
    ("spectrum", "f"),
    [("cos", torch.cos), ("sin", torch.sin), ("gaussian", lambda z: torch.exp(-(z**2) / 2))],
    ids=["cos", "sin", "gaussian"],
)
def test_universal_features_estimate_their_activation(spectrum, f):
    torch.manual_seed(0)
    layer = URFSNNK(4, 3, 20_000, spectrum)
    torch.manual_seed(0)
    gaussian_rows(20_000, 4)
    if spectrum == "gaussian":
        torch.randn(20_000)
    start = nn.Linear(4, 3)  # the weights that the layer started with
    x = torch.nn.functional.normalize(draw(5, 4), dim=1).float()
    with torch.no_grad():
        terms = 20_000 * layer.psi[:, None] * layer.features(x)
        terms = terms[..., :20_000] + terms[..., 20_000:]
        error = terms.std(-1) / math.sqrt(20_000)
        assert ((terms.mean(-1).T - f(start(x))).abs() < 4 * error.T).all()
        torch.testing.assert_close(layer(x), terms.mean(-1).T, rtol=1e-3, atol=1e-4)


def test_exponential_features_are_the_equation():
    x, g, xi = draw(3), draw(2, 3, seed=1), torch.tensor([0.3, -0.2], dtype=torch.float64)
    for k in range(2):
        a = 2j * math.pi * xi[k].item()
        expected = np.exp(np.sqrt(a) * (g[k] @ x).item() - a * x.square().sum().item() / 2) / math.sqrt(2)
        assert exp_features(x, g, xi)[k].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_bundled_is_unbundled(bias):
    torch.manual_seed(0)
    net = nn.Sequential(
        ReLUSNNK(6, 5, 16),
        nn.Linear(5, 8, bias=bias),
        nn.Linear(8, 4),
        URFSNNK(4, 3, 8),
        nn.Linear(3, 2),
        nn.ReLU(),
    ).double()
    x = draw(7, 6)
    folded = bundle(net)
    assert [type(layer).__name__ for layer in folded] == ["ReLUSNNK", "URFSNNK", "ReLU"]
    assert folded[0].psi.shape == (4, 16)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no linear layer follows"):
        bundle(nn.Sequential(nn.Linear(6, 6)))


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_closed_form(l2):
    torch.manual_seed(0)
    x, y = draw(60, 5), draw(60, 2, seed=1)
    model = FullyBundled(5, 20, l2).double().fit(x, y)
    phi = relu_features(x, model.projection)
    expected = torch.linalg.solve(phi.T @ phi + l2 * torch.eye(20).double(), phi.T @ y)
    torch.testing.assert_close(model.psi, expected.T, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model(x), phi @ expected, rtol=1e-7, atol=1e-9)


def test_starts():
    torch.manual_seed(0)
    layer = ReLUSNNK(6, 5, 16, c=-0.1)
    torch.manual_seed(0)
    g = torch.randn(16, 6)
    weight = nn.Linear(6, 5).weight
    torch.testing.assert_close(layer.psi, (weight @ g.T).maximum(torch.tensor(-0.1)) / 4)
    x = torch.randn(3, 6)
    assert torch.equal(SNNKAdapter(6)(x), x)
    assert "projection" in layer.state_dict()
    assert [name for name, _ in layer.named_parameters()] == ["psi"]
    rows = gaussian_rows(6, 6, orthogonal=True)
    assert (rows @ rows.T - (rows @ rows.T).diag().diag()).abs().max() < 1e-5


def test_bad_input():
    with pytest.raises(ValueError, match="spectrum must be one of"):
        URFSNNK(2, 2, spectrum="tan")
    with pytest.raises(ValueError, match="call fit first"):
        FullyBundled(3)(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"y must have shape \(2, out\)"):
        FullyBundled(3).fit(torch.ones(2, 3), torch.ones(3, 1))
