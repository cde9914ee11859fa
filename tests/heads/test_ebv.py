"""Equiangular basis vectors: bounds, exact cases, and the head."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.heads import EBVHead, ebv_quality, generate_ebv, welch_bound


@pytest.mark.parametrize(("n", "d"), [(10, 10), (7, 30), (2, 2), (1, 3)])
def test_no_more_vectors_than_dimensions_are_orthonormal(n, d):
    v = generate_ebv(n, d, alpha=0.0)
    torch.testing.assert_close(v @ v.T, torch.eye(n), rtol=0, atol=1e-6)


def test_more_vectors_than_dimensions_come_near_the_welch_bound():
    v = generate_ebv(64, 32)
    bound = math.sqrt(32 / (32 * 63))
    quality = ebv_quality(v)
    assert quality.welch_bound == pytest.approx(bound)
    assert bound <= quality.max_cosine <= 1.2 * bound
    torch.testing.assert_close(v.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize(("n", "d"), [(3, 2), (6, 5), (6, 3)])
def test_equiangular_sets_that_exist_are_found(n, d):
    assert ebv_quality(generate_ebv(n, d)).max_cosine == pytest.approx(welch_bound(n, d), abs=2e-3)


def test_alpha_stops_early_and_is_met():
    v = generate_ebv(64, 32, alpha=0.2)
    assert 0.15 < ebv_quality(v).max_cosine <= 0.2 + 2e-4


def test_quality_is_brute_force():
    v = torch.randn(9, 4, dtype=torch.float64)
    cosines = [abs(F.cosine_similarity(v[i], v[j], 0).item()) for i in range(9) for j in range(9) if i != j]
    quality = ebv_quality(3 * v)
    assert quality.max_cosine == pytest.approx(max(cosines))
    assert quality.mean_cosine == pytest.approx(sum(cosines) / len(cosines))
    assert ebv_quality(torch.stack([v[0], -v[0]])).max_cosine == pytest.approx(1)  # opposite counts


def test_blocks_and_seeds():
    whole, blocks = generate_ebv(20, 8, steps=5), generate_ebv(20, 8, rows=7, steps=5)
    torch.testing.assert_close(whole, blocks, rtol=1e-4, atol=1e-4)
    state = torch.get_rng_state()
    assert not torch.allclose(generate_ebv(20, 8, steps=5, seed=1), whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_and_unreached_alpha():
    with pytest.raises(ValueError, match=r"Welch bound is 0\.1260"):
        generate_ebv(64, 32, alpha=0.1)
    with pytest.raises(ValueError, match="reached a largest"):
        generate_ebv(64, 32, alpha=0.127, steps=20)
    with pytest.raises(ValueError, match="d must be positive"):
        generate_ebv(4, 0)


def test_head_is_the_cosine_to_fixed_vectors():
    head, x = EBVHead(6, 5).double(), torch.randn(7, 6, dtype=torch.float64)
    z = x @ head.map.weight.T + head.map.bias
    torch.testing.assert_close(head(x), F.cosine_similarity(z[:, None], head.vectors, dim=-1) / 0.07)
    assert head.vectors.shape == (5, 5)
    assert set(head.state_dict()) == {"map.weight", "map.bias", "vectors"}
    assert "vectors" not in dict(head.named_parameters())


def test_loss_and_gradient_of_the_official_code():
    """The logits, loss and gradient of ImageNet_Validation_Experiment/EBV_ImageNet.py in
    github.com/aassxun/Equiangular-Basis-Vectors, T = 0.07, with these features and vectors."""
    x = torch.arange(24).double().mul(1.2).sin().view(4, 6).requires_grad_()
    head = EBVHead(6, 5, vectors=torch.arange(30).double().mul(0.7).cos().view(5, 6)).double()
    torch.nn.init.eye_(head.map.weight)
    torch.nn.init.zeros_(head.map.bias)
    logits = head(x)
    loss = F.cross_entropy(logits, torch.tensor([3, 0, 4, 1]))
    loss.backward()
    first = [10.481730414439, -3.042569331271, -8.951395560754, 10.399204865860, -2.622116759821]
    assert logits[0].tolist() == pytest.approx(first)
    assert loss.item() == pytest.approx(6.536804551925047)
    expected = [
        [-0.0011142845, 0.0084449265, 0.0171406909, 0.0200275787, 0.0120193852, -0.0049639049],
        [-0.0039457960, -0.0171664825, -0.0180408200, -0.0113018485, -0.0041517659, 0.0022682873],
        [-0.9969575677, -1.4470754058, -1.1281201375, -1.0074923108, -1.0297611522, -0.2857754398],
        [-0.3473839906, -0.7467957636, -1.3520781714, -2.0187641795, -1.6842427618, 0.1772162510],
    ]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_cosines_of_the_official_code():
    """The mean and largest |cos| that Generate_EBV/Generate_EBV.py prints of these five vectors; and with its
    threshold of 0.16, which its descent reaches for 64 vectors in 32 dimensions."""
    quality = ebv_quality(torch.arange(30).double().mul(0.7).cos().view(5, 6))
    assert quality.mean_cosine == pytest.approx(0.6009407717789319)
    assert quality.max_cosine == pytest.approx(0.9996324286219077)
    assert ebv_quality(generate_ebv(64, 32, alpha=0.16)).max_cosine <= 0.1601


def test_parameters_do_not_grow_with_classes():
    vectors = generate_ebv(40, 16)
    few, many = EBVHead(6, 10, vectors=vectors[:10]), EBVHead(6, 40, vectors=vectors)
    assert sum(p.numel() for p in few.parameters()) == sum(p.numel() for p in many.parameters()) == 7 * 16
    many.map.load_state_dict(few.map.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(many(x)[:, :10], few(x))


def test_head_errors():
    with pytest.raises(ValueError, match=r"\(5, dim\), got \(4, 3\)"):
        EBVHead(6, 5, vectors=torch.eye(4, 3))
    with pytest.raises(ValueError, match=r"\(4, 8\), got \(4, 3\)"):
        EBVHead(6, 4, dim=8, vectors=torch.eye(4, 3))
    with pytest.raises(ValueError, match="temperature"):
        EBVHead(6, 5, temperature=0.0)
