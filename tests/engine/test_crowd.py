"""Crowds through the engine: labels are made of votes, and the truth stays with the test rows."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.comparison.work import search_space
from logitkit.engine import Batch, Prepared, Recipe, Trainer, run
from logitkit.engine.tasks import TASKS
from logitkit.errors import InputError
from logitkit.robust import DawidSkene, TopTwo

CROWD = "crowd:n=300,classes=4,workers=12,share=0.5,dim=6"
SMALL = {"data": CROWD, "model": "mlp(hidden=(16,))", "lr": 3e-3, "epochs": 3}


def trainer(**settings):
    recipe = Recipe.of(**{**SMALL, **settings})
    return Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))


def test_votes_take_the_place_of_labels_and_only_test_rows_keep_the_truth():
    source = data.load("crowd:n=300,workers=4,share=0.3")
    split = data.split(source, 0)
    for part in ("train", "val"):
        rows, found = split.index[part], getattr(split, part)
        assert torch.equal(found.y, source.extras["votes"][rows])
        assert (found.y >= 0).any(1).all()
        assert found.extras == {}
        assert found.num_classes == 5
    nobody = (source.extras["votes"] < 0).all(1)
    seen = torch.cat(list(split.index.values()))
    left_out = sorted(set(range(300)) - set(seen.tolist()))
    assert left_out
    assert nobody[left_out].all()
    assert torch.equal(split.test.y, source.y[split.index["test"]])


@pytest.mark.parametrize("votes", ["majority", "dawid_skene", "toptwo"])
def test_the_truth_of_training_and_validation_rows_changes_nothing(votes):
    source = data.load(CROWD)
    index = data.split(source, 0).index
    y = source.y.clone()
    for part in ("train", "val"):
        y[index[part]] = (y[index[part]] + 1) % 4
    others = {k: v.flip(0) for k, v in source.extras.items() if k != "votes"}
    flipped = replace(source, y=y, extras={"votes": source.extras["votes"], **others})
    recipe = Recipe.of(**{**SMALL, "votes": votes, "loss": "aldr", "patience": 2})
    first, second = (run(recipe, Prepared.of(data.split(each, 0))) for each in (source, flipped))
    assert first.curve == second.curve
    assert first.metrics == second.metrics


def test_labels_are_those_of_the_part_fitted_on_the_training_votes():
    split = data.split(data.load(CROWD), 0)
    counted = trainer()
    for (_, labels), part in ((counted.data.train, split.train), (counted.data.val, split.val)):
        for label, votes in zip(labels.tolist(), part.y.tolist(), strict=True):
            counts = Counter(v for v in votes if v >= 0)
            assert label == max(range(4), key=lambda k, counts=counts: (counts[k], -k))
    for name, part in (("dawid_skene(steps=7)", DawidSkene(4, 7)), ("toptwo", TopTwo(4))):
        each, fitted = trainer(votes=name), part.fit(split.train.y)
        assert torch.equal(each.data.train[1], fitted.transform(split.train.y).argmax(1))
        assert torch.equal(each.data.val[1], fitted.transform(split.val.y).argmax(1))
    assert torch.equal(each.data.test[1], split.test.y)


def test_the_loss_and_validation_see_labels():
    each = trainer(votes="dawid_skene")
    x, y = each.data.train
    ids = torch.arange(20, 50)
    torch.testing.assert_close(
        each.objective(each.network, Batch(x[ids], y[ids], ids)),
        F.cross_entropy(each.network(x[ids]), y[ids]),
    )
    right = (each.network(each.data.val[0]).argmax(1) == each.data.val[1]).double().mean().item()
    assert each.validate()["val_accuracy"] == right


def test_resuming_changes_nothing(tmp_path):
    whole = trainer(votes="toptwo")
    whole.run()

    class Stop(Exception):
        pass

    first = trainer(votes="toptwo")
    first._checkpoint, first._every = tmp_path / "c.safetensors", 2
    step, done = first.algorithm.step, []

    def stopping(each, batch):
        done.append(1)
        if len(done) == 6:
            raise Stop
        return step(each, batch)

    first.algorithm.step = stopping
    with pytest.raises(Stop):
        first.run()
    second = trainer(votes="toptwo")
    second._checkpoint = first._checkpoint
    second.run()
    for a, b in zip(whole.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_comparison_report_and_saved_model(tmp_path):
    result = logitkit.compare(
        data="crowd:n=400,workers=20", votes="majority,dawid_skene,toptwo",
        epochs=4, lr=1e-2, seeds=2, jobs=1, folder=tmp_path,
    )  # fmt: skip
    found = result.to_dict()["runs"]
    assert len(found) == 6
    assert all(each["metrics"]["accuracy"] > 0.7 for each in found)  # 5 classes; votes name most of them
    page = result.report(tmp_path / "report.html").read_text()
    assert "votes=dawid_skene" in page
    rows = data.load("crowd:n=400,workers=20").take(torch.arange(5))
    again = logitkit.load(result.winner)
    assert torch.equal(again.predict_proba(rows), result.best.predict_proba(rows))
    assert again.predict(rows) == result.best.predict(rows)


def test_parts_of_classification_and_what_is_tuned():
    chosen = {"head": "cosine", "softmax": "stablemax", "calibrate": "temperature", "detect": "mahalanobis"}
    assert "ood_auroc" in run(Recipe.of(**{**SMALL, **chosen})).metrics
    assert "votes.refine" in search_space(Recipe.of(**{**SMALL, "votes": "toptwo"}), TASKS["crowd"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": "iris", "votes": "toptwo"}, "votes=toptwo needs votes; data=iris is a classification task"),
        (
            {"votes": "pgd"},
            "votes=pgd makes no labels of votes. Use one of dawid_skene, faceted_rasch, majority, toptwo",
        ),
        ({"votes": "dawid"}, "there is no such part. Did you mean 'dawid_skene'"),
        ({"votes": "toptwo(refin=True)"}, "no argument 'refin'. Did you mean 'refine'"),
        ({"votes": "dawid_skene(steps=0)"}, "steps"),
        ({"votes": "torch.nn:Linear"}, "your own code can be a model, .*, not a votes"),
        ({"data": "crowd:n=100,classes=2", "votes": "toptwo"}, "num_classes must be at least 3, got 2"),
        ({"loss": "toptwo"}, "loss=toptwo makes labels of votes and is no loss: write votes=toptwo"),
        ({"data": CROWD + "+noise=0.1"}, r"\+noise is for classification, and crowd.* is a crowd task"),
        ({"data": CROWD + "+bags=4"}, r"\+bags is for classification, and crowd.* asks for crowd"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(settings, says, tmp_path):
    with pytest.raises(InputError, match=says):
        logitkit.compare(**{"seeds": 1, "folder": tmp_path, **SMALL, "epochs": [1, 2], **settings})


def test_votes_that_are_missing_or_no_class_are_said():
    source = data.load(CROWD)
    with pytest.raises(InputError, match=r"crowd task without extras\['votes'\]"):
        data.split(replace(source, extras={}), 0)
    wrong = replace(source, extras={"votes": source.extras["votes"] + 2})
    with pytest.raises(InputError, match=r"votes=majority: votes hold 5; expected classes in \[0, 4\)"):
        Trainer(Recipe.of(**SMALL), Prepared.of(data.split(wrong, 0)))
