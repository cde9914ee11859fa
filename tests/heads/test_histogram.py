"""The histogram head: its three projections against scipy and brute force."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional as F

from logitkit.heads import HistogramHead, c51_project, hl_gauss_targets, two_hot_targets


def edges(bins=51, low=-2.0, high=3.0):
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def test_hl_gauss_is_scipys_truncated_normal_mass():
    t, e, sigma = torch.tensor([-2.0, -1.3, 0.02, 2.9, 3.0]), edges(), 0.075
    cdf = norm.cdf((e.numpy() - t.double().numpy()[:, None]) / sigma)
    expected = np.diff(cdf) / (cdf[:, -1:] - cdf[:, :1])
    got = hl_gauss_targets(t, e, sigma)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-12)


def test_hl_gauss_mean_is_the_target_away_from_the_edges():
    head = HistogramHead(4, vmin=-2.0, vmax=3.0)
    width = 5 / 51
    t = torch.linspace(-2 + 4 * head.sigma, 3 - 4 * head.sigma, 400, dtype=torch.float64)
    q = head.project(t)
    assert ((q * head.support).sum(1) - t).abs().max() < 0.02 * width
    assert head.sigma == pytest.approx(0.75 * width)


def test_hl_gauss_with_little_width_is_one_hot():
    q = hl_gauss_targets(torch.tensor([0.31, -1.99]), edges(50), 1e-6)
    assert q.argmax(1).tolist() == [23, 0]
    torch.testing.assert_close(q.amax(1), torch.ones(2, dtype=torch.float64))


def test_two_hot_has_the_targets_mean_on_two_neighbours():
    support = torch.linspace(-2, 3, 51, dtype=torch.float64)
    t = torch.cat([torch.tensor([-2.0, 3.0, 0.5]), 5 * torch.rand(200) - 2]).double()
    q = two_hot_targets(t, support)
    torch.testing.assert_close((q * support).sum(1), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(q.sum(1), torch.ones_like(t), rtol=0, atol=1e-9)
    assert ((q > 1e-9).sum(1) <= 2).all()
    assert two_hot_targets(torch.tensor(0.25), torch.tensor([0.0, 1.0])).tolist() == [0.75, 0.25]


def brute_force_c51(atoms, probabilities, support):
    out = np.zeros((len(atoms), len(support)))
    step = support[1] - support[0]
    for i in range(len(atoms)):
        for atom, p in zip(atoms[i], probabilities[i], strict=True):
            b = (min(max(atom, support[0]), support[-1]) - support[0]) / step
            low = min(int(np.floor(b)), len(support) - 2)
            out[i, low] += p * (low + 1 - b)
            out[i, low + 1] += p * (b - low)
    return out


def test_c51_is_the_brute_force_projection():
    support = torch.linspace(-1, 1, 11, dtype=torch.float64)
    probabilities = torch.rand(6, 11, dtype=torch.float64).softmax(1)
    atoms = torch.randn(6, 1, dtype=torch.float64) + 0.9 * support  # r + gamma z
    expected = brute_force_c51(atoms.numpy(), probabilities.numpy(), support.numpy())
    np.testing.assert_allclose(c51_project(atoms, probabilities, support), expected, atol=1e-12)
    head = HistogramHead(4, -1.0, 1.0, bins=11, target="c51")
    np.testing.assert_allclose(head.project(atoms, probabilities), expected, atol=1e-12)
    torch.testing.assert_close(
        head.project(atoms[:, 0]), HistogramHead(4, -1.0, 1.0, 11, "two_hot").project(atoms[:, 0])
    )


@pytest.mark.parametrize("target", ["hl_gauss", "two_hot"])
def test_loss_and_prediction_are_the_equations(target):
    head = HistogramHead(4, 0.0, 10.0, bins=7, target=target).double()
    logits, t = torch.randn(5, 7, dtype=torch.float64), 10 * torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(head.loss(logits, t), F.cross_entropy(logits, head.project(t)))
    assert head.loss(logits, t[:, None], reduction="none").shape == (5,)
    torch.testing.assert_close(head.predict(logits), logits.softmax(1) @ head.support)
    assert head.loss(logits.bfloat16(), t.bfloat16()).dtype == torch.float32


def test_support_of_each_target_and_clamping():
    gauss, two_hot = (HistogramHead(2, 0.0, 4.0, bins=4, target=t) for t in ("hl_gauss", "two_hot"))
    assert gauss.support.tolist() == [0.5, 1.5, 2.5, 3.5]
    torch.testing.assert_close(two_hot.support, torch.linspace(0, 4, 4).double())
    for head in (gauss, two_hot):
        outside, border = torch.tensor([-7.0, 99.0]), torch.tensor([0.0, 4.0])
        torch.testing.assert_close(head.project(outside), head.project(border))


def test_training_recovers_a_line():
    torch.manual_seed(0)
    x = 2 * torch.rand(256, 1) - 1
    features = torch.cat([x, x**2, x**3], dim=1)
    head = HistogramHead(3, -3.0, 3.0, bins=21)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(head(features), 2 * x).backward()
        optimizer.step()
    assert (head.predict(head(features)) - 2 * x[:, 0]).abs().mean() < 0.1


@pytest.mark.parametrize(
    "bad",
    [
        {"bins": 1},
        {"vmin": 1.0, "vmax": 1.0},
        {"vmax": np.inf},
        {"target": "gauss"},
        {"sigma_ratio": 0},
    ],
    ids=str,
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HistogramHead(3, **{"vmin": 0.0, "vmax": 1.0, **bad})


def test_bad_targets():
    head, logits = HistogramHead(3, 0.0, 1.0), torch.zeros(4, 51)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        head.loss(logits, torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        head.loss(logits, torch.full((4,), torch.nan))
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        head.loss(logits, torch.zeros(4).long())
    with pytest.raises(ValueError, match="51 columns"):
        head.predict(torch.zeros(4, 50))
