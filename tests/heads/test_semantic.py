"""The semantic head is a plain cosine to targets that never move."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit import data, load
from logitkit.engine import Recipe, run
from logitkit.heads import SemanticHead, hashed_text, text_targets

NAMES = ["red disc", "red square", "blue disc"]


def test_logits_are_naive_cosines():
    embeddings = torch.randn(4, 7, dtype=torch.float64)
    head, x = SemanticHead(5, 4, embeddings=3 * embeddings, scale=9.0).double(), torch.randn(6, 5).double()
    z = x @ head.map.weight.T
    expected = 9 * F.cosine_similarity(z[:, None], embeddings, dim=-1)
    torch.testing.assert_close(head(x), expected)
    same = SemanticHead(7, 4, embeddings=embeddings)
    assert not list(same.map.parameters())
    torch.testing.assert_close(
        same(embeddings).detach(), 14 * F.cosine_similarity(embeddings[:, None], embeddings, dim=-1)
    )


def test_training_and_expanding_leave_the_targets_alone():
    head, x = SemanticHead(5, 3, NAMES), torch.randn(8, 5)
    before = head.targets.clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    F.cross_entropy(head(x), torch.arange(8) % 3).backward()
    optimizer.step()
    assert torch.equal(head.targets, before)
    assert "targets" not in dict(head.named_parameters())
    logits = head(x)
    assert head.expand(["green ring"]).expand(embeddings=torch.randn(2, 512)) is head
    assert head(x).shape == (8, 6)
    assert torch.equal(head.targets[:3], before)
    torch.testing.assert_close(head(x)[:, :3], logits)


def test_orthonormal_targets_are_the_fixed_orthogonal_head():
    targets = torch.linalg.qr(torch.randn(6, 6)).Q[:4]
    head, x = SemanticHead(6, 4, embeddings=targets, scale=5.0, learn_scale=False), torch.randn(3, 6)
    torch.testing.assert_close(head(x), 5 * F.normalize(x) @ targets.T)
    assert not [p for p in head.parameters() if p.requires_grad]


def test_hashed_names_are_similar_where_they_share_words():
    red_disc, red_square, blue_disc = hashed_text(NAMES, dim=4096)
    assert red_disc @ red_square == pytest.approx(0.5, abs=0.05)
    assert red_square @ blue_disc == pytest.approx(0, abs=0.05)
    assert red_disc.norm() == pytest.approx(1)
    assert torch.equal(hashed_text(["Red, DISC"]), hashed_text(["disc red"]))


def test_an_encoder_reads_the_template_filled_in():
    seen = []

    def encoder(texts):
        seen.extend(texts)
        return torch.eye(3)[: len(texts)].requires_grad_()

    head = SemanticHead(4, 2, ["cat", "dog"], encoder=encoder)
    assert seen == ["a photo of a cat", "a photo of a dog"]
    assert torch.equal(head.targets, torch.eye(3)[:2])
    assert not head.targets.requires_grad
    head.expand(["bird"])
    assert seen[2] == "a photo of a bird"
    with pytest.raises(ValueError, match=r"must return \(1, dim\)"):
        text_targets(["cat"], lambda texts: torch.zeros(2, 3))


def test_the_engine_names_the_classes(tmp_path):
    result = run(Recipe.of(head="semantic", data="attributes:n=120,classes=4,size=16", epochs=1))
    names = data.load("attributes:n=120,classes=4,size=16").class_names
    assert torch.equal(result.predictor.network.head.targets, hashed_text(names))
    result.predictor.save(tmp_path)
    assert torch.equal(load(tmp_path).network.head.targets, hashed_text(names))


def test_refuses_classes_it_knows_nothing_of():
    with pytest.raises(ValueError, match="need embeddings or class_names"):
        SemanticHead(4, 5)
    with pytest.raises(ValueError, match=r"\(5, dim\), got \(3, 512\)"):
        SemanticHead(4, 5, NAMES)
    with pytest.raises(ValueError, match=r"\(classes, 512\), got \(1, 3\)"):
        SemanticHead(4, 3, NAMES).expand(embeddings=torch.ones(1, 3))
    assert isinstance(SemanticHead(512, 3, NAMES).map, nn.Identity)
