"""The summary says what the verdicts support and nothing more."""

from __future__ import annotations

import json

import pytest

from logitkit.comparison.result import finite
from logitkit.report.study import Study, short_name
from logitkit.report.summary import summarise, title
from report.results import results


def said(*args, **kwargs):
    return summarise(Study(results(*args, **kwargs)))


def test_nothing_beats_the_reference():
    found = said(["no difference shown", "no difference shown"], seeds=5)
    assert found.compared == (
        "3 losses were compared on digits (1,797 images, 10 classes) with 5 seeds, and ranked by accuracy on"
        " held-out test rows."
    )
    assert found.verdict == "No loss is shown to beat cross_entropy on digits at 5 seeds."
    assert found.detail == "That is not evidence that they are equal."
    assert "has the highest mean accuracy" in found.leader
    assert found.caveats == ""


def test_a_single_contender_is_named():
    assert said(["no difference shown"]).verdict == (
        "loss_1 is not shown to beat cross_entropy on digits at 3 seeds."
    )
    assert said(["worse"]).verdict == "loss_1 is shown to be worse than cross_entropy on digits at 3 seeds."
    assert said(["worse"]).detail == ""


def test_better():
    found = said(["better", "no difference shown"])
    assert found.verdict == "loss_1 is shown to beat cross_entropy on digits at 3 seeds."
    assert found.detail == "For loss_2 no difference is shown."
    assert found.leader.startswith("loss_1 has the highest mean accuracy")


def test_several_better_ones_are_not_ranked_among_themselves():
    found = said(["better", "better"])
    assert found.verdict.endswith("are shown to beat cross_entropy on digits at 3 seeds.")
    assert found.detail == "Which of them is best is not tested."


def test_better_and_worse():
    found = said(["better", "worse"])
    assert found.detail == "loss_2 is shown to be worse than cross_entropy."
    assert "No loss" not in str(found)


def test_only_worse():
    found = said(["worse", "no difference shown"])
    assert found.verdict == "No loss is shown to beat cross_entropy on digits at 3 seeds."
    assert found.detail == (
        "loss_1 is shown to be worse than cross_entropy. For loss_2 no difference is shown."
    )


def test_many_are_counted_rather_than_named():
    assert said(["better"] * 12).verdict.startswith("12 losses are shown to beat cross_entropy")


def test_one_seed_supports_nothing():
    found = said(["too few runs"], seeds=1)
    assert found.verdict.startswith("With 1 seed no difference from cross_entropy can be tested")
    assert "interval" not in str(found)
    assert "beat" not in str(found)


def test_diverged_and_unfinished_runs_are_mentioned():
    found = said(["better", "no difference shown"], diverged={2: 1}, missing=2)
    assert "This is a partial result: 2 of 9 runs are not finished." in found.caveats
    assert "1 run diverged (1 of loss_2); means leave these out" in found.caveats


def test_an_arm_without_a_result():
    found = said(["no difference shown", "too few runs"], diverged={2: 3})
    assert "3 runs diverged (3 of loss_2)." in found.caveats
    assert "loss_2 has no result." in found.caveats
    assert "could not be tested" not in str(found)


def test_no_result_at_all():
    assert said(["too few runs"], missing=6).verdict.startswith("No run has a result yet")


def test_a_reference_without_a_result():
    found = said(["too few runs"], diverged={0: 3})
    assert found.verdict == (
        "cross_entropy, the reference, has no finished run, so no difference can be tested."
    )


def test_one_arm():
    found = said([])
    assert found.verdict == "There is nothing to compare cross_entropy with."
    assert found.leader.startswith("Its mean accuracy is 0.9")
    assert title(Study(results([]))) == "cross_entropy on digits"


def test_regression_and_tuning():
    found = said(["better"], task="regression", data="diabetes", tune=8)
    assert "each tuned with 8 trials per seed on validation rows" in found.compared
    assert "(1,797 rows)" in found.compared
    assert "has the lowest mean RMSE" in found.leader


@pytest.mark.parametrize("verdicts", [["better", "worse"], ["too few runs", "no difference shown"]])
def test_null_and_nan_say_the_same(verdicts):
    made = results(verdicts, diverged={1: 3})
    assert summarise(Study(made)) == summarise(Study(json.loads(json.dumps(finite(made)))))


def test_short_names():
    assert short_name("loss=ldr", ["loss"]) == "ldr"
    assert short_name("loss=ldr(lam=1, margin=2), head=cosine", ["loss", "head"]) == (
        "ldr(lam=1, margin=2) + cosine"
    )
    assert short_name("lr=0.1, loss=ce", ["lr", "loss"]) == "lr=0.1, loss=ce"
    assert short_name("loss=mse", []) == "mse"
    assert short_name("something else", ["loss"]) == "something else"
