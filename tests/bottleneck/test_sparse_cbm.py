"""Sparse concept bottlenecks against loops, the authors' numbers and permutations."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.bottleneck import (
    SparseCBM,
    concept_matrix_search,
    contrastive_concept_loss,
    gumbel_concept_loss,
    hoyer_sparsity,
)

C = 3 * torch.sin(1.7 * torch.arange(12.0)).reshape(3, 4)


def test_values_of_the_official_code():
    """criterion_gumbel and criterion_contrastive of github.com/Andron00e/SparseCBM, with noise of 0."""
    assert gumbel_concept_loss(C, 2.0, torch.zeros(2, 3, 4)).item() == pytest.approx(1.5273002386, abs=1e-6)
    square = 3 * torch.sin(1.7 * torch.arange(16.0)).reshape(4, 4)
    assert contrastive_concept_loss(square).item() == pytest.approx(2.3506388664, abs=1e-6)


def test_without_noise_by_loops():
    total = 0.0
    for i in range(3):
        for j in range(4):
            column = sum(math.exp(C[k, j]) for k in range(3))
            row = sum(math.exp(C[i, k]) for k in range(4))
            total -= (2 * C[i, j].item() - math.log(column) - math.log(row)) / 12
    assert gumbel_concept_loss(C, 1.0, torch.zeros(2, 3, 4)).item() == pytest.approx(total / 2, rel=1e-6)


def test_the_noise_is_gumbel():
    torch.manual_seed(0)
    even = torch.zeros(2, 1, dtype=torch.float64)
    values = torch.stack([gumbel_concept_loss(even) for _ in range(4000)])
    # Along two rows: -(log p + log(1 - p)) / 2 of a logistic difference, p uniform, so 1 on average, halved.
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)


def test_fixed_noise_passes_gradcheck_and_equal_scores_are_its_minimum():
    noise = torch.randn(2, 3, 4, dtype=torch.float64)
    c = C.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: gumbel_concept_loss(c, 0.7, noise), c)
    flat = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    value = gumbel_concept_loss(flat, 1.0, torch.zeros(2, 3, 4))
    assert value.item() == pytest.approx((math.log(3) + math.log(4)) / 2)
    assert torch.autograd.grad(value, flat)[0].abs().max() < 1e-12
    assert value < gumbel_concept_loss(c, 1.0, torch.zeros(2, 3, 4))


def test_search_finds_the_rows_it_was_given():
    classes = torch.rand(5, 9)
    order = torch.randperm(5)
    for cubed in (False, True):
        scores = concept_matrix_search(3 * classes[order], classes, cubed)
        assert torch.equal(scores.argmax(dim=1), order)
    images, power = torch.randn(4, 9), 3
    expected = F.cosine_similarity((images**power)[:, None], (classes**power), dim=-1)
    torch.testing.assert_close(concept_matrix_search(images, classes, cubed=True), expected)
    with pytest.raises(ValueError, match=r"\(4, 9\) and \(5, 8\)"):
        concept_matrix_search(images, classes[:, 1:])


def test_losses_are_cross_entropy_plus_their_term():
    s, y = torch.randn(4, 4), torch.tensor([0, 2, 1, 1])
    for mode in ("l1", "contrastive", "gumbel"):
        torch.manual_seed(3)
        model = SparseCBM(4, 3, mode)
        c = s @ model.concepts.weight.T
        ce = F.cross_entropy(c @ model.head.weight.T, y)
        torch.testing.assert_close(model(s)[0], c)
        torch.manual_seed(5)
        found = model.loss(s, y) - ce
        torch.manual_seed(5)
        term = {
            "l1": lambda m, c: 1e-3 * m.concepts.weight.abs().sum() / 4,
            "contrastive": lambda m, c: contrastive_concept_loss(c),
            "gumbel": lambda m, c: gumbel_concept_loss(c),
        }[mode](model, c)
        torch.testing.assert_close(found, term)


def test_hoyer_sparsity_of_one_and_of_all():
    x = torch.stack([torch.eye(5)[2], torch.ones(5)])
    assert hoyer_sparsity(x).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_large_similarities_stay_finite():
    model = SparseCBM(4, 3)
    s = (1e4 * C).requires_grad_()
    model.loss(s, torch.tensor([0, 1, 2])).backward()
    assert s.grad.isfinite().all()


def test_refuses_what_it_cannot_pair():
    with pytest.raises(ValueError, match=r"got \(3, 4\)"):
        SparseCBM(4, 3, "contrastive").loss(C, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="'sparse'"):
        SparseCBM(4, 3, "sparse")
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        gumbel_concept_loss(C, 0)
