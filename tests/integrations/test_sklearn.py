"""scikit-learn's own checks, all of them, and the tools the classifier is meant for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from logitkit.integrations.sklearn import LogitClassifier


@parametrize_with_checks([LogitClassifier(epochs=30, lr=0.01, random_state=0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_no_check_is_skipped():
    results = check_estimator(LogitClassifier(epochs=20, lr=0.01, random_state=0), on_fail=None, on_skip=None)
    assert {r["status"] for r in results} == {"passed"}


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def test_in_a_pipeline_and_cross_validation(iris):
    model = make_pipeline(PolynomialFeatures(2), LogitClassifier(epochs=30, lr=0.01, random_state=0))
    assert cross_val_score(model, *iris, cv=3).mean() > 0.9


def test_grid_search_over_parts(iris):
    search = GridSearchCV(
        LogitClassifier(epochs=20, lr=0.01, random_state=0),
        {"loss": ["cross_entropy", "ldr"], "head": ["linear", "cosine(scale=16)"]},
        cv=3,
    ).fit(*iris)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.predict(iris[0]).shape == (150,)


def test_calibration_and_early_stopping_hold_rows_out(iris):
    model = LogitClassifier(epochs=300, lr=0.01, patience=20, calibrate="temperature", random_state=0).fit(
        *iris
    )
    assert len(model.curve_) < 300
    assert "val_accuracy" in model.curve_[0]
    assert model.predictor_.calibrators[0].temperature > 0
    assert model.score(*iris) > 0.9


def test_a_wrong_recipe_says_so(iris):
    with pytest.raises(ValueError, match="Did you mean 'cross_entropy'"):
        LogitClassifier(loss="cross_entrop").fit(*iris)
