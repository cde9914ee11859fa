"""Distillation by soft labels against plain floats, its limits, and its form without logits."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.distill import KDLoss


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loop_over_plain_floats():
    s, t, expected = sample(4, 5), 2 * sample(4, 5, seed=1), []
    for z, v in zip(s.tolist(), t.tolist(), strict=True):
        q, p = ([math.exp(x / 3) / sum(math.exp(y / 3) for y in row) for x in row] for row in (z, v))
        expected.append(9 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    found = KDLoss(temperature=3.0, reduction="none")(s, t, torch.tensor([0, 4, 2, 1]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_at_high_temperatures_it_compares_centred_logits():
    s, t = sample(3, 6).requires_grad_(), sample(3, 6, seed=1)
    KDLoss(temperature=1e4, reduction="sum")(s, t, torch.zeros(3, dtype=torch.long)).backward()
    apart = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    torch.testing.assert_close(s.grad, apart.detach() / 6, rtol=1e-3, atol=1e-6)


def test_ignored_rows_count_nothing_and_the_teacher_learns_nothing():
    s, t = sample(4, 5).requires_grad_(), sample(4, 5, seed=1).requires_grad_()
    loss = KDLoss()(s, t, torch.tensor([0, -100, 2, -100]))
    torch.testing.assert_close(loss, KDLoss()(s[::2], t[::2], torch.tensor([0, 2])))
    loss.backward()
    assert t.grad is None
    assert not s.grad[1::2].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_logits_it_is_the_same(reduction):
    x, v, w, tw, b, tb = (sample(*shape) for shape in ((6, 4), (6, 3), (11, 4), (11, 3), (11,), (11,)))
    y = torch.tensor([0, 5, -100, 10, 3, 3])
    found = []
    for form in ("logits", "features"):
        leaves = [z.clone().requires_grad_() for z in (x, w, b)]
        loss = KDLoss(2.0, reduction=reduction)
        if form == "logits":
            value = loss(F.linear(*leaves), F.linear(v, tw, tb), y)
        else:
            value = loss.of_features(*leaves[:2], v, tw, y, leaves[2], tb)
        found.append([value.detach(), *torch.autograd.grad(value.sum(), leaves)])
    for plain, without in zip(*found, strict=True):
        torch.testing.assert_close(without, plain)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        KDLoss(temperature=0.0)
