"""The concept bottleneck as a head: the part it is, pairs written out, and its way through the engine."""

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.bottleneck import SparseCBM, contrastive_concept_loss
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.heads import SparseCBMHead


def head_and_part(mode, concepts=6, classes=3):
    head, part = SparseCBMHead(concepts, classes, mode), SparseCBM(concepts, classes, mode)
    part.load_state_dict(head.state_dict())
    return head, part


@pytest.mark.parametrize("mode", ["gumbel", "contrastive", "l1"])
def test_logits_and_loss_are_those_of_the_part(mode):
    head, part = head_and_part(mode)
    s, y = torch.randn(6, 6), torch.randint(3, (6,))
    c, logits = part(s)
    torch.testing.assert_close(head(s), logits)
    torch.testing.assert_close(head.concept_scores(s), c)
    values = []
    for each in (head, part):
        torch.manual_seed(1)
        values.append(each.loss(s, y))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("batch", [4, 6, 15])
def test_contrastive_pairs_by_loops(batch):
    head, _ = head_and_part("contrastive")
    s, y = torch.randn(batch, 6), torch.randint(3, (batch,))
    c = head.concept_scores(s)
    ce = F.cross_entropy(head(s), y)
    expected = sum(
        -(c[i].log_softmax(0)[i % 6] + c[:, i % 6].log_softmax(0)[i]) / (2 * batch) for i in range(batch)
    )
    torch.testing.assert_close(head.loss(s, y) - ce, expected)
    paired = torch.arange(batch) % 6
    torch.testing.assert_close(contrastive_concept_loss(c, paired), expected)


def test_the_engine_trains_it_by_its_own_loss_of_the_features():
    recipe = Recipe.of(data="concepts:n=200", model="linear", head="sparse_cbm(mode=l1, l1_weight=0.5)")
    trainer = Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))
    x, y = trainer.data.train
    rows = torch.arange(30)
    a, w = trainer.network.head.concepts.weight, trainer.network.head.head.weight
    expected = F.cross_entropy(x[rows] @ a.T @ w.T, y[rows]) + 0.5 * a.abs().sum() / 64
    torch.testing.assert_close(trainer.objective(trainer.network, Batch(x[rows], y[rows], rows)), expected)
    expected = x[rows] @ a.T @ w.T
    torch.testing.assert_close(trainer.network(x[rows]), expected, rtol=1e-4, atol=1e-5)


def test_with_a_regulariser_of_scores():
    recipe = Recipe.of(
        data="concepts:n=200", model="linear", head="sparse_cbm(mode=l1)", regularize="0.1*z_loss"
    )
    trainer = Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))
    x, y = trainer.data.train
    rows = torch.arange(30)
    own = trainer.network.head.loss(x[rows], y[rows])
    more = 0.1 * logitkit.create("losses", "z_loss", num_classes=20)(trainer.network(x[rows]), y[rows])
    torch.testing.assert_close(trainer.objective(trainer.network, Batch(x[rows], y[rows], rows)), own + more)


def test_comparison_and_saved_model(tmp_path):
    heads = "linear,sparse_cbm,sparse_cbm(mode=contrastive)"
    result = logitkit.compare(
        data="concepts:n=600,classes=5", model="linear", head=heads, epochs=4, lr=1e-2, seeds=1,
        jobs=1, folder=tmp_path,
    )  # fmt: skip
    found = {r["recipe"]["head"]: r["metrics"]["accuracy"] for r in result.records.values()}
    assert found.pop("linear") > 2 * 0.2  # twice what chance finds
    assert min(found.values()) > 0.8
    again, rows = logitkit.load(result.winner), data.load("concepts:n=40,classes=5")
    assert torch.equal(again.predict_proba(rows), result.best.predict_proba(rows))


@pytest.mark.parametrize("bad", [{"mode": "sparse"}, {"tau": 0}, {"l1_weight": 0}], ids=str)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SparseCBMHead(6, 3, **bad)


def test_bad_targets():
    head = SparseCBMHead(6, 3)
    with pytest.raises(ValueError, match="label 3"):
        head.loss(torch.randn(2, 6), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="NaN"):
        head.loss(torch.full((2, 6), torch.nan), torch.tensor([0, 1]))
