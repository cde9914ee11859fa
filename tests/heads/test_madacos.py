"""MadaCos: what scale and margin are for, and numbers of the authors' code."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.heads import MadaCosHead, madacos_scale_and_margin

COSINES = torch.tensor([[0.6, -0.2, 0.1], [0.3, 0.7, 0.2], [-0.4, 0.5, 0.2], [0.1, 0.0, 0.3]])
LABELS = torch.tensor([0, 1, 2, 2])


def batch(n=33, classes=7, d=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def head_near_labels(alpha=0.02, **settings):
    """A head whose labels' cosines are high, so that neither bound acts, with its batch."""
    torch.manual_seed(0)
    x, y = batch()
    head = MadaCosHead(16, 7, alpha, **settings).double()
    return head, x + 1.5 * F.normalize(head.weight.detach())[y] * x.norm(dim=1, keepdim=True), y


@pytest.mark.parametrize(
    ("alpha", "statistic", "margin"),
    [
        (0.02, "default", 0.3203708529),
        (0.02, "mean", 0.0),
        (0.02, "median", 0.3203708529),
        (0.1, "default", 0.2674148487),
        (0.1, "mean", 0.0),
        (0.1, "median", 0.2674148487),
    ],
)
def test_values_of_the_official_code(alpha, statistic, margin):
    """MadaCosLayer of github.com/bassyess/CFCD on these cosines."""
    scale, found = madacos_scale_and_margin(COSINES, LABELS, alpha, statistic)
    assert scale.item() == 32.0
    assert found.item() == pytest.approx(margin, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.02, 0.1])
def test_the_median_example_has_probability_alpha_and_a_perfect_one_almost_one(alpha):
    head, x, y = head_near_labels(alpha)
    logits = head(x, target=y)
    cosines = F.normalize(x) @ F.normalize(head.weight).T
    own = cosines.gather(1, y[:, None])[:, 0]
    median = int(own.argsort()[(len(y) - 1) // 2])
    assert 32 < head.scale.item() < 2e5
    assert logits.softmax(1)[median, y[median]].item() == pytest.approx(alpha, abs=1e-5)
    rest = logits[median].clone()
    rest[y[median]] += head.scale.double() * (1 - own[median])
    assert rest.softmax(0)[y[median]].item() == pytest.approx(1 - 1e-7, abs=1e-9)


def test_gradient_is_that_of_constant_scale_and_margin():
    head, x, y = head_near_labels()
    x.requires_grad_()
    (found,) = torch.autograd.grad(F.cross_entropy(head(x, target=y), y), x)
    cosines = F.normalize(x) @ F.normalize(head.weight).T
    scale, margin = madacos_scale_and_margin(cosines, y)
    logits = scale * (cosines - margin * F.one_hot(y, 7))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, y), x)
    torch.testing.assert_close(found, expected)


def test_evaluation_keeps_the_last_scale_and_has_no_margin():
    head, x, y = head_near_labels()
    head(x, target=y)
    seen = head.scale.clone()
    head.eval()
    cosines = F.normalize(x) @ F.normalize(head.weight).T
    torch.testing.assert_close(head(x[:5], target=y[:5]), seen * cosines[:5])
    torch.testing.assert_close(head(x[:5]), seen * cosines[:5])
    assert head.scale == seen


def test_a_perfect_batch_and_a_batch_of_one_are_finite():
    head = MadaCosHead(4, 3)
    y = torch.tensor([0, 1, 2])
    perfect = head.weight.detach().clone().requires_grad_()
    logits = head(perfect, target=y)
    F.cross_entropy(logits, y).backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(perfect.grad).all()
    assert head.scale.item() == pytest.approx(20.01 / 1e-4, rel=0.01)
    assert torch.isfinite(head(torch.randn(1, 4), target=y[:1])).all()


@pytest.mark.parametrize(
    "bad", [{"alpha": 0.0}, {"alpha": 1.0}, {"statistic": "max"}, {"num_classes": 1}], ids=str
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MadaCosHead(**{"in_features": 4, "num_classes": 3, **bad})
