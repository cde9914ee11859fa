"""Hyp-OC: its loss by hand, its limits, and what it finds."""

import copy

import pytest
import torch
from torch.nn import functional as F

from logitkit.detect import HypOC, clip_norm, equal_error_rate, half_total_error_rate, pairwise_confusion
from logitkit.engine import Recipe, run
from logitkit.engine.metrics import auroc
from logitkit.ops.poincare import dist


def ordinary(n=300, seed=0):
    """Points near a plane in eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(2, 8, generator=torch.Generator().manual_seed(9))
    return 5 + torch.randn(n, 2, generator=generator) @ plane + 0.1 * torch.randn(n, 8, generator=generator)


def test_clipping_leaves_short_vectors():
    x = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(clip_norm(x, 2.0), torch.tensor([[0.3, 0.4], [1.2, 1.6], [0.0, 0.0]]))


def test_confusion_is_a_loop_over_the_halves():
    x = 0.5 * torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = sum(dist(x[i], x[i + 3], 0.1) for i in range(3)) / 6
    torch.testing.assert_close(pairwise_confusion(x, 0.1), expected)
    assert pairwise_confusion(x[:1].repeat(4, 1), 0.1) == 0
    assert pairwise_confusion(x[:1], 0.1) == 0


def test_loss_is_cross_entropy_against_noise_around_a_running_mean():
    torch.manual_seed(0)
    part = HypOC(in_features=8, alpha=0.75, std=0.5)
    x, mean = ordinary(6), torch.zeros(8)
    for _ in range(2):
        mean = 0.75 * mean + 0.25 * x.mean(0)
        torch.manual_seed(1)
        found = part.loss(x)
        torch.manual_seed(1)
        noise = mean + 0.5 * torch.randn(6, 8)
        real, pseudo = part.embed(x), part.embed(noise)
        scores = part.logits(torch.cat([real, pseudo]))
        expected = F.cross_entropy(scores, torch.tensor([0] * 6 + [1] * 6)) + pairwise_confusion(real, 0.1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(part.mean, mean)
    part.eval().loss(x)
    torch.testing.assert_close(part.mean, mean)  # evaluation leaves no trace


def test_values_and_gradients_of_the_official_code():
    """ToPoincare (clip_r=1.5, a learned origin, riemannian=False) and HyperbolicMLR of hyptorch/nn.py, and
    TPC_loss_hyp of loss.py in github.com/Kartik-3004/hyp-oc at c = 0.1. It adds 1e-5 to denominators, and has
    arctan where the distance has artanh."""
    h = torch.arange(24).double().mul(1.1).sin().mul(1.2).view(6, 4).requires_grad_()
    part = HypOC(in_features=4, hidden=(4,), clip=1.5).double()
    part.layers = torch.nn.Identity()
    part.origin.data = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    part.normals.data = torch.arange(8).double().mul(0.8).cos().view(2, 4)
    part.points.data = torch.arange(8).double().mul(1.6).sin().mul(0.4).view(2, 4)
    x = part.embed(h)
    points = [
        [0.355098442, 0.790769529, 1.050507823, 0.291594460],
        [-0.442709577, -0.825371174, 0.378208476, 1.297086685],
        [0.968425958, -0.716381373, -0.928249896, 0.003978550],
    ]
    torch.testing.assert_close(x[:3], torch.tensor(points, dtype=torch.float64), rtol=0, atol=3e-5)
    logits = part.logits(x)
    scores = [
        [-0.090510372, 0.887232047], [-11.813723887, 12.089143093],
        [-1.337955810, 1.134303771], [5.072404908, -4.660081783],
        [-10.679976969, 11.110223815], [-8.214748930, 8.152132212],
    ]  # fmt: skip
    torch.testing.assert_close(logits, torch.tensor(scores, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    loss = F.cross_entropy(logits, torch.tensor([0, 0, 0, 1, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(6.247622145186868, rel=1e-4)
    slopes = [
        [-1.056886798, -0.633379375, 0.346269389, 1.009382118],
        [-0.007399263, -0.068326918, -0.129303945, -0.015131137],
        [-0.952452312, -1.324252492, -0.412006589, 1.024784555],
        [0.403519627, -0.269942855, -0.500299851, -0.251652471],
    ]
    torch.testing.assert_close(h.grad[:4], torch.tensor(slopes, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    origin = [-2.350246454, -2.686595704, 0.117835352, 3.033277577]
    assert part.origin.grad.tolist() == pytest.approx(origin, abs=1e-3)
    apart = dist(x[:3], x[3:], 0.1)
    distances = [2.511605312, 1.729039200, 2.645088803]
    assert apart.tolist() == pytest.approx(distances, rel=1e-4)
    assert pairwise_confusion(x, 0.1).item() == pytest.approx(sum(distances) / 6, rel=1e-4)
    inside = (0.1**0.5 * apart / 2).tanh()
    assert (2 / 0.1**0.5 * inside.atan()).sum().item() / 6 == pytest.approx(1.0522051726016526, rel=1e-4)


def test_the_backbone_gets_a_gradient():
    x = ordinary(6).requires_grad_()
    HypOC(in_features=8).loss(x).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("c", [0.0, 0.1, 1.0])
def test_finds_what_is_off_the_plane(c):
    part = HypOC(c=c).fit(ordinary())
    generator = torch.Generator().manual_seed(5)
    inside = ordinary(200, seed=1)
    shuffled = torch.stack([inside[torch.randperm(200, generator=generator), k] for k in range(8)], dim=1)
    assert auroc(part.score(inside), part.score(shuffled)) > 0.85


def test_embeddings_lie_in_the_ball():
    part = HypOC(c=1.0).fit(ordinary())
    assert (part.embed(1e4 * ordinary(50)).norm(dim=1) < 1).all()
    assert torch.isfinite(part.score(1e4 * ordinary(50))).all()


def test_fit_is_reproducible_starts_anew_and_leaves_the_random_state():
    first = HypOC(epochs=3)
    state = torch.random.get_rng_state()
    first.fit(ordinary())
    assert torch.equal(torch.random.get_rng_state(), state)
    x = ordinary(20, seed=2)
    expected = first.score(x)
    torch.testing.assert_close(first.fit(ordinary()).score(x), expected)
    assert not torch.equal(HypOC(epochs=3, seed=1).fit(ordinary()).score(x), expected)


def test_an_unfitted_detector_loads_a_fitted_ones_state():
    fitted = HypOC(epochs=2).fit(ordinary())
    other = HypOC()
    other.load_state_dict(copy.deepcopy(fitted.state_dict()))
    x = ordinary(20, seed=2)
    torch.testing.assert_close(other.eval().score(x), fitted.score(x))


def test_error_rates_by_hand():
    inside, outside = torch.tensor([0.1, 0.2, 0.3, 0.8]), torch.tensor([0.25, 0.7, 0.9, 1.0])
    assert half_total_error_rate(inside, outside, 0.5) == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert half_total_error_rate(inside, outside, 0.0) == pytest.approx((1 + 0) / 2)
    rate, threshold = equal_error_rate(inside, outside)
    assert rate == pytest.approx(0.25)
    assert half_total_error_rate(inside, outside, threshold) == pytest.approx(rate)


def test_works_as_the_engines_detector():
    result = run(Recipe.of(detect="hyp_oc(epochs=3)", epochs=2))
    assert 0 <= result.metrics["ood_auroc"] <= 1


@pytest.mark.parametrize(
    "bad", [{"c": -1.0}, {"alpha": 1.0}, {"clip": 0.0}, {"std": 0.0}, {"hidden": ()}], ids=str
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HypOC(**bad)


def test_bad_features():
    with pytest.raises(ValueError, match="must be fitted"):
        HypOC().score(ordinary(3))
    with pytest.raises(ValueError, match=r"shape \(batch, 8\)"):
        HypOC(epochs=1).fit(ordinary()).score(ordinary(3)[:, :5])
