"""One class through the engine: nothing but it is known before the test."""

from dataclasses import replace

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.cli.predictions import write_predictions
from logitkit.detect import Mahalanobis
from logitkit.engine import Prepared, Recipe, run
from logitkit.engine.metrics import one_class
from logitkit.errors import InputError

SOURCE = "mixture:n=400,classes=4,dim=5+task=oneclass"


def test_training_rows_are_of_the_most_frequent_class():
    source = data.load("iris+task=oneclass")
    source = source.take(torch.arange(40, 150))  # 10 of the first class, 50 of the others
    split = data.split(source, 0)
    assert (source.y[split.index["train"]] == 1).all()
    assert (source.y[split.index["val"]] == 1).all()
    assert torch.equal(split.test.y, (source.y[split.index["test"]] != 1).long())
    assert split.test.y.sum() == 60
    assert sorted(torch.cat(list(split.index.values())).tolist()) == list(range(110))
    assert split.train.class_names == ("versicolor", "not versicolor")


def test_the_metrics_are_those_of_the_detector_on_the_features():
    split = data.split(data.load(SOURCE), 0)
    prepared = Prepared.of(split)
    found = run(Recipe.of(data=SOURCE, model="linear", detect="mahalanobis"), prepared)
    (x, _), (test, y) = prepared.train, prepared.test
    score = Mahalanobis().fit(x, torch.zeros(len(x), dtype=torch.long)).score(test)
    ordinary, other = score[y == 0].double(), score[y == 1].double()
    pairs = other[:, None] - ordinary
    auroc = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean().item()
    assert found.metrics["auroc"] == pytest.approx(auroc, abs=1e-6)
    assert found.metrics["auroc"] > 0.9
    assert found.costs["train_seconds"] < 0.1
    torch.testing.assert_close(found.predictor.predict(split.test), score)


def test_rates_of_scores_counted_by_hand():
    found = one_class(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0, 5.0, 6.0]))
    assert found["auroc"] == pytest.approx(15 / 16)
    assert found["eer"] == pytest.approx(0.25)
    assert found["fpr95"] == pytest.approx(0.25)  # 95 % of the others lie above 2.725


def test_a_comparison_without_a_choice_compares_detectors(tmp_path):
    result = logitkit.compare(
        data=SOURCE, model="linear", seeds=2, jobs=1, folder=tmp_path, store=f"sqlite:///{tmp_path}/s.sqlite"
    )
    assert {row.label for row in result.ranking} == {"detect=mahalanobis", "detect=hyp_oc"}
    assert len(result.best.predict(SOURCE)) == 400
    written = tmp_path / "found.csv"
    assert write_predictions(result.best, SOURCE, written) == 400
    assert written.read_text().startswith("abnormality")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ce,focal"}, "loss= has no effect"),
        ({"detect": "msp,mahalanobis"}, "reads the scores of classes"),
        ({"tune": 2}, "trains nothing; list the"),
        ({"data": "diabetes+task=oneclass"}, "needs classes"),
        ({"data": "iris+task=oneclass+noise=0.2"}, "no wrong labels"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{"data": SOURCE, "model": "linear", "folder": tmp_path, **settings})


def test_a_single_class_has_nothing_to_find():
    source = data.load(SOURCE)
    with pytest.raises(InputError, match="nothing to find"):
        data.split(replace(source, y=torch.zeros_like(source.y)), 0)
