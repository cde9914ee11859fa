"""RePRI against loops, the authors' numbers, and what each of its terms does."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.adapt import RePRI, foreground_cosines, pixel_entropy, proportion_kl, support_cross_entropy

SUPPORT = torch.sin(1.7 * torch.arange(400.0) ** 1.1).reshape(2, 2, 4, 5, 5)
QUERY = torch.cos(1.3 * torch.arange(200.0) ** 1.1).reshape(2, 4, 5, 5)
MASKS = torch.zeros(2, 2, 10, 10, dtype=torch.int64)
MASKS[:, :, 2:6, 3:8] = 1
MASKS[:, 1, 8:] = 255
MASKS[1, 0, :3] = 1


def test_values_of_the_official_code():
    """Classifier of github.com/mboudiaf/RePRI-for-Few-Shot-Segmentation, normalised features, temperature 5
    (at 20 its logarithms of 1 - p + 1e-10 round in float32): 49 updates, a new proportion at 10."""
    expected = {
        ((1.0, None, None), False): ([0.5128507018, 0.1790006161], [0.5242298245, 0.4997184277],
            [0.4055846334, 0.1955844760, 0.1719125211, 0.2670044601, 0.2619638443, 0.6989487410]),
        ((1.0, 0.0, 1.0), False): ([0.5206577182, 0.1740151495], [0.5154593587, 0.4910032749],
            [0.3757689297, 0.1908863187, 0.1724929363, 0.3826997280, 0.1741291285, 0.6907780766]),
        ((1.0, None, None), True): ([0.5676776767, 0.1760157049], [0.4, 0.52],
            [0.4002414644, 0.1598707736, 0.1476865560, 0.2673185766, 0.2628328502, 0.6995597778]),
    }  # fmt: skip
    oracle = torch.tensor([0.4, 0.52])
    for (weights, known), (bias, proportion, values) in expected.items():
        part = RePRI(temperature=5.0, weights=weights)
        given = oracle if known else None
        found = part.adapt(SUPPORT, MASKS, QUERY, given)
        assert found.bias.tolist() == pytest.approx(bias, abs=1e-4)
        assert found.proportion.tolist() == pytest.approx(proportion, abs=1e-4)
        probabilities = part.segment(SUPPORT, MASKS, QUERY, given)
        assert probabilities[:, [0, 3, 7], [1, 5, 8]].flatten().tolist() == pytest.approx(values, abs=1e-4)


def test_terms_are_loops_over_pixels():
    z = torch.tensor([[[[0.3, -1.0], [2.0, 0.5]]], [[[1.0, 1.0], [0.0, -3.0]]]], dtype=torch.float64)
    masks = torch.tensor([[[[1, 0], [255, 1]]], [[[0, 0], [0, 1]]]])
    for task in range(2):
        p = [1 / (1 + math.exp(-v)) for v in z[task].flatten().tolist()]
        labels = masks[task].flatten().tolist()
        losses = [-math.log(q if y == 1 else 1 - q) for q, y in zip(p, labels, strict=True) if y != 255]
        assert support_cross_entropy(z, masks)[task].item() == pytest.approx(sum(losses) / len(losses))
        mean, pi = sum(p) / 4, 0.3
        kl = mean * math.log(mean / pi) + (1 - mean) * math.log((1 - mean) / (1 - pi))
        assert proportion_kl(z, torch.full((2,), pi))[task].item() == pytest.approx(kl)
        entropy = sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p) / 4
        assert pixel_entropy(z)[task].item() == pytest.approx(entropy)


def test_entropy_of_even_odds_and_kl_of_a_match():
    z = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    assert pixel_entropy(0 * z).tolist() == pytest.approx([math.log(2)] * 3)
    assert proportion_kl(z, torch.sigmoid(z).mean(dim=(1, 2, 3))).abs().max() < 1e-12
    assert (proportion_kl(z, torch.full((3,), 0.9)) > 0).all()


def test_terms_pass_gradcheck_in_prototype_and_bias():
    features = F.normalize(SUPPORT.double(), dim=2)
    masks = F.interpolate(MASKS.float(), size=(5, 5)).long()
    w = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def terms(w, b):
        z = 20 * foreground_cosines(features, w) - b[:, None, None, None]
        pi = torch.tensor([0.2, 0.7], dtype=torch.float64)
        return support_cross_entropy(z, masks), proportion_kl(z, pi), pixel_entropy(z)

    assert torch.autograd.gradcheck(terms, (w, b))


def test_without_updates_it_is_the_prototype_classifier():
    features, query = F.normalize(SUPPORT, dim=2), F.normalize(QUERY, dim=1)
    masks = F.interpolate(MASKS.float(), size=(5, 5)).long()
    found = RePRI(iterations=1).segment(SUPPORT, MASKS, QUERY)
    for task in range(2):
        pixels = [features[task, s, :, i, j] for s, i, j in (masks[task] == 1).nonzero().tolist()]
        w = torch.stack(pixels).mean(dim=0)
        z = 20 * torch.einsum("chw,c->hw", query[task], w / w.norm())
        z = F.interpolate((z - z.mean())[None, None], size=(10, 10), mode="bilinear", align_corners=True)
        torch.testing.assert_close(found[task], torch.sigmoid(z[0, 0]), rtol=1e-4, atol=1e-5)


def test_without_the_querys_terms_it_sees_the_query_only_at_the_start():
    start = RePRI(iterations=1).adapt(SUPPORT, MASKS, QUERY)
    u = F.normalize(start.prototype, dim=1)
    v = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    v = F.normalize(v - (v * u).sum(dim=1, keepdim=True) * u, dim=1)
    mean = start.bias[:, None] / 20
    # A query of one colour whose cosine to the prototype is the mean of the other query's.
    plain = (mean * u + (1 - mean**2).sqrt() * v)[:, :, None, None].expand(-1, -1, 5, 5)
    for weights, same in (((1.0, 0.0, 0.0), True), ((1.0, 0.0, 1.0), False)):
        part = RePRI(weights=weights)
        first, second = part.adapt(SUPPORT, MASKS, QUERY), part.adapt(SUPPORT, MASKS, plain)
        assert torch.allclose(first.prototype, second.prototype, rtol=1e-3, atol=1e-4) == same
        assert torch.allclose(first.bias, second.bias, rtol=1e-3, atol=1e-4) == same


def test_updates_lower_the_loss_and_approach_a_known_proportion():
    known = torch.tensor([0.1, 0.6])
    part = RePRI(temperature=2.0, weights=(0.0, 1.0, 0.0), lr=0.1, iterations=500)
    found = part.adapt(SUPPORT, MASKS, QUERY, known)
    assert (found.trace.diff(dim=0) <= 1e-7).all()
    z = 2 * foreground_cosines(F.normalize(QUERY, dim=1)[:, None], found.prototype)
    mean = torch.sigmoid(z - found.bias[:, None, None, None]).mean(dim=(1, 2, 3))
    assert mean.tolist() == pytest.approx(known.tolist(), abs=0.05)


def test_tasks_do_not_influence_each_other():
    both = RePRI().segment(SUPPORT, MASKS, QUERY)
    alone = RePRI().segment(SUPPORT[1:], MASKS[1:], QUERY[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_refuses_a_support_without_foreground():
    masks = MASKS.clone()
    masks[1][masks[1] == 1] = 0
    with pytest.raises(ValueError, match="task 1 has no foreground"):
        RePRI().segment(SUPPORT, masks, QUERY)
