"""The normalised-softmax head and classification of classes it never saw."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.heads import NormalizedSoftmaxHead, NovelClassClassifier


def test_it_is_cosine_over_temperature_and_ignores_lengths():
    head, x = NormalizedSoftmaxHead(6, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    expected = F.cosine_similarity(x[:, None], head.weight, dim=-1) / 0.05
    torch.testing.assert_close(head(x), expected)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.1], [3.0], [1e3], [1.0]])
    torch.testing.assert_close(head(x * torch.rand(5, 1) * 100), expected)


def test_gradient_is_orthogonal_to_the_features():
    head, x = NormalizedSoftmaxHead(6, 4).double(), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(head(x), torch.arange(5) % 4).backward()
    assert (x * x.grad).sum(1).abs().max() < 1e-6 * x.grad.norm()


def test_layernorm_comes_first():
    head, x = NormalizedSoftmaxHead(6, 4, layernorm=True).double(), torch.randn(5, 6, dtype=torch.float64)
    expected = F.cosine_similarity(F.layer_norm(x, (6,))[:, None], head.weight, dim=-1) / 0.05
    torch.testing.assert_close(head(x), expected)


def test_the_least_loss_is_the_simplexs():
    k, t = 4, 0.5
    simplex = torch.eye(k, dtype=torch.float64) - 1 / k
    head = NormalizedSoftmaxHead(k, k, temperature=t).double()
    head.weight.data = simplex.clone()
    best = math.log(1 + (k - 1) * math.exp(-(k / (k - 1)) / t))
    assert F.cross_entropy(head(simplex), torch.arange(k)).item() == pytest.approx(best)
    x = torch.randn(k, k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x, *head.parameters()], lr=0.05)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    for _ in range(300):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), torch.arange(k))
        loss.backward()
        optimizer.step()
    assert best - 1e-9 < loss.item() < best + 1e-2


def clusters(seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(4, 8, generator=g)
    labels = torch.tensor([50, 7, 7, 50, -2, 9, 9, -2])
    index = torch.tensor([0, 1, 1, 0, 2, 3, 3, 2])
    support = centres[index] + 0.1 * torch.randn(8, 8, generator=g)
    query = centres + 0.1 * torch.randn(4, 8, generator=g)
    return support, labels, query, torch.tensor([50, 7, -2, 9])


@pytest.mark.parametrize("rule", ["centroid", "knn"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_novel_classes_of_any_label(rule, metric):
    support, labels, query, expected = clusters()
    classifier = NovelClassClassifier(rule, metric).fit(support, labels)
    assert torch.equal(classifier.predict(query), expected)
    scaled = query * torch.tensor([[1.0], [20.0], [0.05], [1.0]])
    same = torch.equal(classifier.predict(scaled), expected)
    assert same == (metric == "cosine")


def test_centroids_are_directions_of_summed_unit_vectors():
    support = torch.tensor([[10.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    classifier = NovelClassClassifier().fit(support, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(classifier.points, torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))
    euclidean = NovelClassClassifier(metric="euclidean").fit(support, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(euclidean.points, torch.tensor([[5.0, 0.5], [-1.0, 0.0]]))


def test_one_shot_centroid_is_the_nearest_neighbour():
    support, query = torch.randn(6, 5), torch.randn(40, 5)
    labels = torch.randperm(6)
    one, other = (
        NovelClassClassifier(rule).fit(support, labels).predict(query) for rule in ("centroid", "knn")
    )
    assert torch.equal(one, other)


def test_errors():
    with pytest.raises(ValueError, match="temperature"):
        NormalizedSoftmaxHead(4, 3, temperature=0)
    with pytest.raises(ValueError, match="rule"):
        NovelClassClassifier("mean")
    with pytest.raises(ValueError, match="metric"):
        NovelClassClassifier(metric="l1")
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        NovelClassClassifier().fit(torch.randn(3, 2), torch.tensor([0, 1]))
