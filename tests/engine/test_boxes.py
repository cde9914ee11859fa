"""Boxes through the engine: the recipe's suppression is what is judged."""

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.calibrate import SoftNMS
from logitkit.cli.predictions import write_predictions
from logitkit.engine import Prepared, Recipe, run
from logitkit.errors import InputError
from logitkit.ops import average_precision

SOURCE = "detections:n=30"


def test_the_generator_says_what_it_draws():
    source = data.load(SOURCE)
    assert source.x.shape == (30, 80, 5)
    assert source.y.shape == (30, 15, 4)
    there = (source.y != 0).any(-1)
    assert there.sum(1).min() >= 5
    side = (source.y[..., 2:] - source.y[..., :2])[there]
    assert side.min() >= 59.9
    assert side.max() <= 160.1
    scores = source.x[..., 4]
    assert ((scores > 0).sum(1) == 5 * there.sum(1) + 5).all()
    assert data.load("detections:n=30,alarms=0").x.shape == (30, 75, 5)


def test_precision_is_that_of_the_part_image_by_image():
    split = data.split(data.load(SOURCE), 0)
    found = run(Recipe.of(data=SOURCE, calibrate="soft_nms(method=linear)"), Prepared.of(split))
    part, x = SoftNMS("linear"), split.test.x
    left = torch.stack([part.transform(image[:, :4], image[:, 4]) for image in x])
    labels = torch.where((split.test.y != 0).any(-1), 0, -1)
    expected = average_precision(x[..., :4], left, split.test.y, truth_classes=labels)
    assert found.metrics["ap"] == pytest.approx(expected)
    assert found.costs["parameters"] == 0
    torch.testing.assert_close(found.predictor.predict(x), left)


def test_without_suppression_scores_stay():
    split = data.split(data.load(SOURCE), 0)
    found = run(Recipe.of(data=SOURCE), Prepared.of(split))
    assert torch.equal(found.predictor.predict(split.test.x), split.test.x[..., 4])


def test_a_comparison_ranks_rules_and_keeps_the_best(tmp_path):
    result = logitkit.compare(
        data=SOURCE, seeds=2, jobs=1, folder=tmp_path, store=f"sqlite:///{tmp_path}/s.sqlite"
    )
    assert result.ranking[-1].label == "calibrate=soft_nms(method=hard)"
    again = logitkit.load(tmp_path / "winner")
    x = data.load(SOURCE).x
    torch.testing.assert_close(again.predict(x), result.best.predict(x))
    page = result.report(tmp_path / "report.html").read_text()
    assert "3 calibrators were compared" in page
    assert "Learning curves" not in page  # nothing was trained
    written = tmp_path / "scores.csv"
    assert write_predictions(again, SOURCE, written) == 30
    assert len(written.read_text().splitlines()) == 31


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ce,focal"}, "loss= has no effect"),
        ({"model": "mlp,cnn"}, "model= has no effect"),
        ({"calibrate": "temperature,soft_nms"}, "not for boxes"),
        ({"tune": 3}, "trains nothing; list the"),
        ({"data": "iris", "calibrate": "soft_nms,none"}, "is for boxes"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{"data": SOURCE, "folder": tmp_path, **settings})
