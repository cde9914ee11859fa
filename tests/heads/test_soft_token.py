"""The soft-token head: sums written out, limits, and a codebook that reads around what is unknown."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.bottleneck import SoftToken
from logitkit.heads import SoftTokenHead
from logitkit.ops.codebook import Codebook


def with_codes(codes, **settings):
    head = SoftTokenHead(5, codes.shape[1], len(codes), **settings).eval()
    head.codebook.vectors.copy_(codes)
    return head


def test_the_prediction_is_the_mean_code_and_that_of_the_part():
    codes, logits = torch.randn(6, 4), torch.randn(3, 6)
    found = with_codes(codes, temperature=0.7).predict(logits)
    for row, scores in zip(found, logits.tolist(), strict=True):
        weights = [math.exp(v / 0.7) for v in scores]
        expected = sum(w * code for w, code in zip(weights, codes, strict=True)) / sum(weights)
        torch.testing.assert_close(row, expected)
    torch.testing.assert_close(found, SoftToken(codes, temperature=0.7)(logits)[0])


def test_without_temperature_it_is_hard():
    codes, logits = torch.randn(6, 4), torch.randn(3, 6)
    hard = with_codes(codes, hard=True).predict(logits)
    assert hard.equal(codes[[row.index(max(row)) for row in logits.tolist()]])
    torch.testing.assert_close(with_codes(codes, temperature=1e-6).predict(logits), hard)


def test_the_loss_is_cross_entropy_to_the_code_closest_over_what_is_known():
    g = torch.Generator().manual_seed(0)
    codes, logits, target = (torch.randn(*s, generator=g) for s in ((6, 4), (20, 6), (20, 4)))
    target[torch.rand(20, 4, generator=g) < 0.4] = math.nan
    target[:, 0] = target[:, 0].nan_to_num()
    closest = []
    for row in target.tolist():
        apart = [
            sum((a - b) ** 2 for a, b in zip(row, code, strict=True) if not math.isnan(a))
            for code in codes.tolist()
        ]
        closest.append(apart.index(min(apart)))
    assert len(set(closest)) > 3
    head = with_codes(codes)
    torch.testing.assert_close(
        head.loss(logits, target, reduction="none"),
        F.cross_entropy(logits, torch.tensor(closest), reduction="none"),
    )
    assert head.codebook.vectors.equal(codes)


def test_codes_come_to_lie_on_the_patches_there_are():
    """One of five numbers is unknown, and most rows are one flat patch."""
    g = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[0.0, 0, 0, 0], [-2, -2, 1, 1], [1, -2, 1, -2], [3, 3, 3, 0]])
    head = SoftTokenHead(5, 4, codes=16)
    torch.manual_seed(0)
    for _ in range(300):
        target = shapes[torch.multinomial(torch.tensor([0.94, 0.02, 0.02, 0.02]), 300, True, generator=g)]
        target[torch.rand(target.shape, generator=g) < 0.2] = math.nan
        target = target[(target == target).any(dim=1)]
        head.loss(torch.zeros(len(target), 16), target)
    assert torch.cdist(shapes, head.codebook.vectors).amin(dim=1).max() < 0.3


def test_a_flat_background_does_not_take_the_codebook():
    torch.manual_seed(0)
    head = SoftTokenHead(5, 4, codes=16)
    target = torch.cat([torch.zeros(400, 4), torch.randn(40, 4)])
    for _ in range(3):
        head.loss(torch.zeros(440, 16), target)
    assert (head.codebook.vectors.abs().amax(dim=1) < 1e-3).sum() <= 3


def test_the_nearest_code_in_double_precision():
    g = torch.Generator().manual_seed(1)
    book = Codebook(7, 3, 0.9).double()
    z = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    assert book.nearest(z).equal(torch.cdist(z, book.vectors.expand(2, 7, 3)).argmin(-1))
    assert book.nearest(z, torch.ones_like(z, dtype=torch.bool)).equal(book.nearest(z))


def test_bad_input_is_said():
    head = SoftTokenHead(5, 4, codes=6)
    logits, target = torch.zeros(3, 6), torch.zeros(3, 4)
    for bad in (target[:, :3], target.long(), target[:2]):
        with pytest.raises(ValueError, match=r"target must be real numbers of shape \(3, 4\)"):
            head.loss(logits, bad)
    with pytest.raises(ValueError, match="without a known number"):
        head.loss(logits, torch.full((3, 4), math.nan))
    for name, value in (("codes", 1), ("temperature", 0.0), ("pixels", 0)):
        with pytest.raises(ValueError, match=name):
            SoftTokenHead(**{"in_features": 5, "pixels": 4, name: value})
