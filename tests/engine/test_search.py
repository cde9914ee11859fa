"""A search through the engine: queries that training has not seen find their documents."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.cli.predictions import write_predictions
from logitkit.contrast import ANNCUR
from logitkit.engine import Batch, Prepared, Recipe, Trainer, metrics, run
from logitkit.engine.network import Network
from logitkit.errors import InputError

SOURCE = "passages:n=300,documents=60,entities=10,dim=16"
SMALL = {"data": SOURCE, "model": "mlp(hidden=(32,))", "head": "dual", "epochs": 8, "lr": 5e-3}
ANNCUR_ALL = "anncur(anchors=20,budget=60)"


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load(SOURCE), 0))


def test_one_document_and_no_other_states_what_a_query_names():
    """The vectors without noise are sums of words, which least squares finds again."""
    source = data.load("passages:n=2000,documents=80,entities=7,dim=16,noise=0")
    named = torch.cat(
        [F.one_hot(source.extras["entity"], 7), F.one_hot(source.extras["facts"], 96).sum(1)], dim=1
    ).double()
    x = source.x.double()
    torch.testing.assert_close(
        named @ torch.linalg.lstsq(named, x, driver="gelsd").solution, x, atol=1e-4, rtol=0
    )
    asked = {}
    for entity, facts, row in zip(*(t.tolist() for t in (*source.extras.values(), source.y)), strict=True):
        assert len({fact // 12 for fact in facts}) == 2
        assert row % 7 == entity
        assert asked.setdefault((entity, *sorted(facts)), row) == row
    with pytest.raises(InputError, match="too alike"):
        data.load("passages:n=5,documents=20000,entities=1")


def test_queries_are_split_and_documents_are_not():
    source = data.load(SOURCE)
    split = data.split(source, 0)
    for part in (split.train, split.val, split.test):
        assert torch.equal(part.documents, source.documents)
    prepared = Prepared.of(split)
    assert prepared.shape.num_classes == 60
    torch.testing.assert_close(prepared.documents.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.documents.std(0, correction=0), torch.ones(16))
    other = data.load(SOURCE + "+seed=1")
    assert not torch.equal(source.documents, other.documents)
    assert replace(source, documents=other.documents).fingerprint != source.fingerprint


def test_metrics_against_loops():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(12, (40, 130), generator=g).float()  # with many ties
    y = torch.randint(130, (40,), generator=g)
    scores[torch.arange(10), y[:10]] = 99.0

    class Fixed:
        find = Network.find
        finder = None

        def embed(self, x):
            return x

        def head(self, x):
            return x

    found = metrics.search(Fixed(), scores, y)
    ranks = [sum(v >= row[k] for v in row) for row, k in zip(scores.tolist(), y.tolist(), strict=True)]
    assert min(ranks) == 1
    assert 10 < sorted(ranks)[20] < 100
    assert found["mrr@10"] == pytest.approx(sum(1 / r for r in ranks if r <= 10) / 40)
    for k in (1, 5):
        assert found[f"r@{k}"] == pytest.approx(sum(r <= k for r in ranks) / 40)
    assert found["calls"] == 130


def test_the_loss_is_that_of_classification_over_documents(prepared):
    for head in ("dual", "cross"):
        each = Trainer(Recipe.of(**{**SMALL, "head": head}), prepared)
        x, y = (t[:20] for t in prepared.train)
        scores = each.network.head(each.network.embed(x))
        torch.testing.assert_close(
            each.objective(each.network, Batch(x, y, torch.arange(20))), F.cross_entropy(scores, y)
        )
        assert torch.equal(each.network.head.documents, prepared.documents)


@pytest.mark.parametrize("search", ["exact", ANNCUR_ALL])
def test_what_is_learned_is_saved(prepared, tmp_path, search):
    result = run(Recipe.of(**SMALL, search=search), prepared)
    assert result.metrics["mrr@10"] > 0.2  # chance: 0.05
    assert result.metrics["noise_mrr@10"] < result.metrics["mrr@10"]
    result.predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    found = again.predict(data.load(SOURCE))
    assert found.shape == (300, 5)
    assert torch.equal(found, result.predictor.predict(data.load(SOURCE)))
    assert again.evaluate(*prepared.test)[0]["mrr@10"] == result.metrics["mrr@10"]
    with pytest.raises(InputError, match="search model has no class probabilities"):
        again.predict_proba(data.load(SOURCE))
    assert write_predictions(again, SOURCE, tmp_path / "found.csv") == 300
    first = (tmp_path / "found.csv").read_text().splitlines()
    assert first[0] == "document_1,document_2,document_3,document_4,document_5"
    assert first[1] == ",".join(map(str, found[0].tolist()))


def test_anncur_searches_with_the_scores_of_the_trained_network(prepared):
    arms = {s: run(Recipe.of(**{**SMALL, "head": "cross"}, search=s), prepared) for s in
            ("exact", ANNCUR_ALL, "anncur(anchors=10,budget=15)")}  # fmt: skip
    exact, whole, part = (each.metrics for each in arms.values())
    assert whole == {**exact, "calls": 60.0}  # every document is scored
    network = arms["exact"].predictor.network
    with torch.no_grad():
        train, test = (network(x) for x, _ in (prepared.train, prepared.test))
    fitted = ANNCUR(10).fit(train)
    approximate = fitted.approx_scores(test[:, fitted.anchor_items])
    approximate[:, fitted.anchor_items] = torch.inf
    scored = approximate.topk(15, dim=1).indices
    y = prepared.test[1]
    seen = torch.full_like(test, -torch.inf).scatter(1, scored, test.gather(1, scored))
    rank = torch.where((scored == y[:, None]).any(1), (seen >= seen.gather(1, y[:, None])).sum(1), 99)
    assert part["r@1"] == pytest.approx((rank == 1).double().mean().item())
    assert part["mrr@10"] == pytest.approx(torch.where(rank <= 10, 1 / rank, 0).double().mean().item())
    assert part["calls"] == 15
    assert part["mrr@10"] < exact["mrr@10"]
    # tuning sees what the search finds
    val = arms["anncur(anchors=10,budget=15)"]
    assert val.val["val_score"] < arms["exact"].val["val_score"]
    assert val.val["val_score"] == metrics.search(val.predictor.network, *prepared.val)["mrr@10"]


def test_a_comparison_needs_no_choice_and_reports_the_tasks_numbers(tmp_path):
    small = {"data": SOURCE, "epochs": 1, "seeds": 2, "jobs": 1, "folder": tmp_path}
    result = logitkit.compare(**small)
    assert len(result.ranking) > 2
    assert all(arm.head.name == "dual" for arm in result.plan.arms)
    page = result.report(tmp_path / "report.html").read_text()
    assert all(name in page for name in ("MRR@10", "R@100", "60 documents", "scores per query"))
    searches = logitkit.compare(**small, head="cross", search=f"exact,{ANNCUR_ALL}")
    assert {row.means["calls"] for row in searches.ranking} == {60.0}


def test_tuning_chooses_anchors_and_passes_over_what_the_budget_does_not_hold(tmp_path):
    result = logitkit.compare(
        **{**SMALL, "epochs": 1, "lr": 1e-4}, search="anncur(budget=51),anncur(budget=52)", tune=8, seeds=1,
        jobs=1, folder=tmp_path,
    )  # fmt: skip
    tuned = [record["tuned"] for record in result.records.values()]
    assert all(each == {} or 10 <= each["search.anchors"] < 52 for each in tuned)
    assert any(tuned)


def test_ones_own_queries_and_documents(tmp_path):
    source = data.load(SOURCE)
    arrays = {"x": source.x.numpy(), "y": source.y.numpy(), "documents": source.documents.numpy()}
    np.savez(tmp_path / "faq.npz", **arrays)
    again = data.load(tmp_path / "faq.npz")
    assert again.task == "search"
    assert torch.equal(again.documents, source.documents)
    assert torch.equal(again.y, source.y)
    for change, message in (
        ({"y": source.y.numpy() + 60}, "row of one of its 60 documents"),
        ({"y": source.y.numpy()[:-1]}, "300 queries but labels of shape"),
        ({"documents": source.documents.numpy()[:1]}, "at least 2"),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, **change})
        with pytest.raises(InputError, match=message):
            data.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "linear,dual"}, "head=linear cannot do search.*one of cross, dual"),
        ({"data": "digits", "head": "linear,dual"}, "head=dual cannot do classification"),
        ({"data": "digits", "head": "linear", "search": "exact,anncur"}, "needs documents; data=digits"),
        ({"search": "exact,triplet"}, "triplet does not search. Use one of exact, anncur"),
        ({"search": "exact,anncur"}, "budget of 100, of which .* has 60"),
        ({"search": "exact,anncur(anchors=30,budget=30)"}, "anchors < budget"),
        ({"search": "exact(k=3),exact"}, "no settings"),
        ({"loss": "ce,anncur"}, "write search=anncur"),
        ({"loss": "ce,ar2"}, "write algorithm=ar2"),
        ({"loss": "ce,binary_cross_entropy"}, "is for"),
        ({"calibrate": "none,temperature"}, "this is a search task"),
        ({"data": SOURCE + "+task=retrieval"}, "needs labels"),
        ({"data": SOURCE + "+noise=0.1"}, "noise is for classification"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "folder": tmp_path, **settings})
