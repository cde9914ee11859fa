"""NKD: the pieces it is made of, numbers of the authors' code, and its form without logits."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.distill import NKDLoss


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def waves(n, k, step):
    return 3 * (torch.arange(n * k, dtype=torch.float64) * step).sin().view(n, k)


def others(z, y):
    """The rows of z without their label, in order."""
    return torch.stack([torch.cat([row[:k], row[k + 1 :]]) for row, k in zip(z, y.tolist(), strict=True)])


def test_it_is_made_of_the_pieces_of_distillation():
    """Soft-label cross-entropy = label part + binary part + (1 - T_y) times the part among the others; NKD
    has the first and the last, the last without its weight."""
    s, t, y = 2 * sample(8, 6), 3 * sample(8, 6, seed=1), torch.arange(8) % 6
    S, T = (F.softmax(z, 1).gather(1, y[:, None])[:, 0] for z in (s, t))
    among = -(F.softmax(others(t, y), 1) * F.log_softmax(others(s, y), 1)).sum(1)
    full = -(F.softmax(t, 1) * F.log_softmax(s, 1)).sum(1)
    torch.testing.assert_close(full, -T * S.log() - (1 - T) * (1 - S).log() + (1 - T) * among)
    torch.testing.assert_close(NKDLoss(0.7, reduction="none")(s, t, y), -T * S.log() + 0.7 * among)


def test_what_differs_by_a_constant_among_the_others_is_learned():
    """There the part among the others is its least, the entropy; the unnormalised sum still has a slope."""
    t, y = 2 * sample(5, 6), torch.tensor([0, 1, 2, 5, 3])
    s = (t + 1.3).scatter(1, y[:, None], sample(5, 1, seed=1)).requires_grad_()
    only = NKDLoss(1.0, 2.0, reduction="none")(s, t, y) - NKDLoss(0.0, reduction="none")(s, t, y)
    hat = F.softmax(others(t, y) / 2, 1)
    torch.testing.assert_close(only, -4 * (hat * hat.log()).sum(1))
    (slope,) = torch.autograd.grad(only.sum(), s)
    assert slope.abs().max() < 1e-12
    naive = -others(F.softmax(t, 1) * F.log_softmax(s, 1), y).sum()
    assert others(torch.autograd.grad(naive, s)[0], y).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "value", "gradient"),
    [
        ({}, 6.522184617608191, [0.005911447155169737, 0.08918621364094606, 0.004075327569455763,
         -0.023284045050977406, 0.030947129226348787, 0.09699299117438695, -0.20382906371532986]),
        ({"gamma": 0.5, "temperature": 2.0}, 5.259402743640316, [0.0054475175998436685, 0.022596545874128612,
         0.010494499653570782, -0.023284045050977406, 0.018283645029607547, 0.061131482978020846,
         -0.09466964608419406]),
    ],
)  # fmt: skip
def test_the_authors_numbers(settings, value, gradient):
    s, t = waves(5, 7, 1.7).requires_grad_(), 1.5 * waves(5, 7, 2.3)
    loss = NKDLoss(**settings)(s, t, torch.tensor([3, 0, 6, 3, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(s.grad[0], torch.tensor(gradient, dtype=torch.float64), rtol=1e-10, atol=0)


def test_two_classes_have_one_other():
    s, t, y = sample(3, 2), sample(3, 2, seed=1), torch.tensor([0, 1, 1])
    torch.testing.assert_close(NKDLoss()(s, t, y), NKDLoss(gamma=0.0)(s, t, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_logits_it_is_less_by_an_entropy(reduction):
    x, v, w, tw, b, tb = (sample(*shape) for shape in ((6, 4), (6, 3), (11, 4), (11, 3), (11,), (11,)))
    y = torch.tensor([0, 5, -100, 10, 3, 3])
    kept = (y != -100).double()
    hat = F.softmax(others(F.linear(v, tw, tb), y.clamp(min=0)), 1)
    entropy = -kept * (hat * hat.log()).sum(1)
    entropy = {"none": entropy, "sum": entropy.sum(), "mean": entropy.sum() / kept.sum()}[reduction]
    found = []
    for form in ("logits", "features"):
        leaves = [z.clone().requires_grad_() for z in (x, w, b)]
        loss = NKDLoss(reduction=reduction)
        if form == "logits":
            value = loss(F.linear(*leaves), F.linear(v, tw, tb), y)
        else:
            value = loss.of_features(*leaves[:2], v, tw, y, leaves[2], tb) + 1.5 * entropy
        found.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
    for plain, without in zip(*found, strict=True):
        torch.testing.assert_close(without, plain)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"gamma must be at least 0, got -1\.0"):
        NKDLoss(gamma=-1.0)
    x, w, y = sample(2, 3), sample(4, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"of_features needs a temperature of 1, got 2\.0"):
        NKDLoss(temperature=2.0).of_features(x, w, x, w, y)
