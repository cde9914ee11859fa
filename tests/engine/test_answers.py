"""Calibrating sequence models: tokens by a temperature, whole answers by what is drawn from the model."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.calibrate import UtilityToProbability
from logitkit.data.base import IGNORE, answer_length
from logitkit.engine import Prepared, Recipe, answers, run
from logitkit.engine.answers import candidates
from logitkit.errors import InputError
from logitkit.ops import fit_temperature

SOURCE = "strings:n=600,operation=add,length=1"
SMALL = {"data": SOURCE, "model": "transformer(dim=32,depth=1)", "lr": 0.01, "epochs": 3}
TABLE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
ONE = torch.tensor([[3, 0, 0]]), torch.tensor([[IGNORE, 1, 2]])


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load(SOURCE), 0))


def network(x):
    """A token depends on the one before."""
    return TABLE[x].flatten(0, 1)


def log_p(prompt, answer):
    p = TABLE.double().log_softmax(1)
    return sum(p[a, b].item() for a, b in zip((prompt, *answer), answer, strict=False))


def test_candidates_against_every_answer_there_is(monkeypatch):
    """Nine answers of two tokens: drawn often enough all come up, once each, with their probabilities."""
    monkeypatch.setattr(answers, "DRAWN", 2000)
    x, y = ONE
    found = candidates(network, x.expand(3, 3), y.expand(3, 3), torch.Generator().manual_seed(0))
    every = sorted(log_p(0, answer) for answer in itertools.product(range(3), repeat=2))
    for row in found.utilities:
        torch.testing.assert_close(row[row.isfinite()].sort().values, torch.tensor(every).double())
    best = log_p(0, (int(TABLE[0].argmax()), int(TABLE[TABLE[0].argmax()].argmax())))
    assert found.utilities[0, 0].item() == pytest.approx(best)
    assert (found.lengths == 2).all()
    right = found.utilities[found.right]
    assert right.tolist() == pytest.approx([log_p(0, (1, 2))] * 3)


def test_answers_are_drawn_by_their_probability(monkeypatch):
    """The one that is drawn repeats the likeliest tokens as often as these are likely."""
    monkeypatch.setattr(answers, "DRAWN", 1)
    x, y = (t.expand(4000, 3) for t in ONE)
    found = candidates(network, x, y, torch.Generator().manual_seed(0))
    p = found.utilities[0, 0].exp().item()
    repeated = found.utilities[:, 1].isinf().double().mean().item()
    assert repeated == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


def test_the_reference_comes_first_when_it_is_there():
    found = candidates(network, *ONE, torch.Generator().manual_seed(0), with_reference=True)
    assert found.right.nonzero().tolist() == [[0, 0]]
    assert found.utilities[0, 0].item() == pytest.approx(log_p(0, (1, 2)))


def test_answers_of_one_token_are_calibrated_as_tokens_are(monkeypatch):
    """Where a token is the answer and all that are likely are drawn, k is one over the temperature, and a
    sample is right as often."""
    monkeypatch.setattr(answers, "DRAWN", 300)
    source = data.load("strings:n=300,operation=sort,length=2")
    x, y = source.x[:, :3], source.y[:, :3]  # the smaller of two digits
    own = data.Dataset("own", x, y, "sequence", "tokens", source.class_names, vocabulary=12)
    prepared = Prepared.of(data.split(own, 0))
    small = {**SMALL, "epochs": 12}
    tokens, whole = (
        run(Recipe.of(**small, calibrate=each), prepared) for each in ("temperature", "utility_probability")
    )
    t, k = tokens.predictor.calibrators[0].temperature, whole.predictor.calibrators[0].k
    assert abs(t.item() - 1) > 0.05
    assert k.item() == pytest.approx(1 / t.item(), rel=0.05)
    assert whole.metrics["exact"] == pytest.approx(tokens.metrics["exact"], rel=0.02)
    assert whole.metrics["map_exact"] == tokens.metrics["map_exact"] == tokens.metrics["accuracy"]


def test_a_temperature_is_fitted_on_validation_tokens(prepared):
    plain, calibrated = (
        run(Recipe.of(**SMALL, calibrate=each), prepared) for each in ("none", "temperature")
    )

    def scored(part):
        x, y = part
        return plain.predictor.network(x).detach()[y.flatten() != IGNORE], y[y != IGNORE]

    t = fit_temperature(*scored(prepared.val))
    z, y = scored(prepared.test)
    assert calibrated.metrics["bits"] == pytest.approx(
        F.cross_entropy(z.double() / t, y).item() / math.log(2), rel=1e-6
    )
    assert calibrated.metrics["accuracy"] == plain.metrics["accuracy"]
    assert calibrated.metrics["map_exact"] == plain.metrics["map_exact"]


def test_few_tokens_are_enough_for_a_temperature(prepared, monkeypatch):
    from logitkit.engine import predictor

    monkeypatch.setattr(predictor, "SCORES", 12 * 5 * 40)
    seen = []
    fit = logitkit.calibrate.TemperatureScaling.fit
    monkeypatch.setattr(
        logitkit.calibrate.TemperatureScaling,
        "fit",
        lambda part, z, y: (seen.append(len(y)), fit(part, z, y))[1],
    )
    run(Recipe.of(**{**SMALL, "epochs": 1}, calibrate="temperature"), prepared)
    assert seen == [2 * 40]


def test_a_comparison_ranks_by_whole_answers_and_keeps_what_was_fitted(tmp_path):
    chain = "temperature+utility_probability"
    result = logitkit.compare(
        **SMALL,
        calibrate=f"none,utility_probability,utility_probability(k=1),{chain}",
        metric="exact",
        seeds=1,
        jobs=1,
        folder=tmp_path,
    )
    found = {row.label.removeprefix("calibrate="): row.means for row in result.ranking}
    assert found["none"]["bits"] == found["utility_probability"]["bits"]
    assert found["utility_probability"]["exact"] != found["utility_probability(k=1)"]["exact"]
    page = result.report(tmp_path / "report.html").read_text()
    assert "whole answers right, drawn" in page
    again = logitkit.load(tmp_path / "winner")
    test = data.split(data.load(SOURCE), 0).test
    assert again.evaluate(test.x, test.y)[0]["exact"] == pytest.approx(result.ranking[0].means["exact"])


def test_noise_is_known_to_validation_references_only():
    prepared = Prepared.of(data.split(data.load(f"{SOURCE}+noise=0.3"), 0))
    assert prepared.shape.answer == 2
    found = run(Recipe.of(**{**SMALL, "epochs": 1}, calibrate="utility_probability"), prepared)
    assert isinstance(found.predictor.calibrators[0], UtilityToProbability)
    assert 0 < found.metrics["exact"] < 1


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ("strings:n=20,operation=reverse,length=6", 6),
        ("strings:n=20,operation=add,length=3", 4),
        ("recall:n=20,vocab=8,pairs=1,length=6", 1),
        ("recall:n=20,vocab=16,pairs=3,length=12", 0),  # several answers, which are not read
        ("text:stdlib+limit=20+length=8", 0),  # no prompt
    ],
)
def test_which_sequences_have_answers(source, tokens):
    found = data.load(source)
    assert answer_length(found.x, found.y) == tokens
    assert answer_length(found.x[:0], found.y[:0]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibrate": "utility_probability+temperature,none"}, "must come last in a chain"),
        (
            {"calibrate": "none,utility_probability", "data": "text:stdlib+limit=50+length=8"},
            "rows of a prompt",
        ),
        ({"calibrate": "none,utility_probability", "data": "digits", "model": "mlp"}, "is for sequence"),
        ({"calibrate": "none,utility_probability(k=0)"}, "k must be positive"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "folder": tmp_path, **settings})
