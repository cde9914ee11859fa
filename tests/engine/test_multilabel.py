"""Multi-label problems through the engine and the comparison."""

import math

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.engine import Recipe, run
from logitkit.engine.metrics import multilabel
from logitkit.errors import InputError

DATA = "extreme:n=300,classes=40,groups=8,dim=8,most=4"


def test_metrics_against_loops_over_plain_numbers():
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 12, generator=g)
    y = torch.rand(30, 12, generator=g).argsort(dim=1)[:, :4]
    y[torch.rand(30, 4, generator=g) < 0.4] = -1
    train = torch.randint(-1, 12, (200, 3), generator=g)
    counts = [(train == k).sum().item() for k in range(12)]
    c = (math.log(200) - 1) * 2.5**0.55
    weight = [1 + c * (n + 1.5) ** -0.55 for n in counts]
    found = multilabel(scores, y, train)
    rows = [
        (scores[i].argsort(descending=True).tolist(), {k for k in y[i].tolist() if k >= 0})
        for i in range(30)
        if (y[i] >= 0).any()
    ]
    for k in (1, 3, 5):
        expected = sum(sum(label in relevant for label in top[:k]) / k for top, relevant in rows) / len(rows)
        assert found[f"p@{k}"] == pytest.approx(expected)
    gains = [sum(1 / math.log2(i + 2) for i in range(5) if top[i] in relevant) for top, relevant in rows]
    ideal = [sum(1 / math.log2(i + 2) for i in range(min(5, len(relevant)))) for _, relevant in rows]
    assert found["ndcg@5"] == pytest.approx(sum(a / b for a, b in zip(gains, ideal, strict=True)) / len(rows))
    for k in (1, 5):
        got = sum(sum(weight[label] for label in top[:k] if label in relevant) for top, relevant in rows)
        best = sum(
            sum(sorted((weight[label] for label in relevant), reverse=True)[:k]) for _, relevant in rows
        )
        assert found[f"psp@{k}"] == pytest.approx(got / best)


def test_a_run_learns_saves_and_predicts(tmp_path):
    recipe = Recipe.of(data=DATA, loss="decoupled_softmax", epochs=15, lr=0.01)
    result = run(recipe)
    assert result.metrics["p@1"] > 0.5  # a guess of the most frequent label finds it in about 0.15
    assert result.metrics["noise_p@1"] <= result.metrics["p@1"]
    assert {"p@3", "p@5", "ndcg@5", "psp@1", "psp@5"} <= set(result.metrics)
    result.predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    rows = data.load(DATA).take(torch.arange(5))
    assert again.predict(rows) == result.predictor.predict(rows)
    with pytest.raises(InputError, match="multilabel model has no class probabilities"):
        again.predict_proba(rows)


def test_every_loss_of_many_labels_compares_and_others_are_refused(tmp_path):
    small = {"data": DATA, "epochs": 2, "seeds": 2, "jobs": 1, "folder": tmp_path}
    result = logitkit.compare(loss="bce,multi_positive,decoupled_softmax,soft_topk", **small)
    result.report(tmp_path / "report.html")
    found = result.to_dict()["runs"]
    assert len(found) == 8
    assert all(0 < each["metrics"]["p@1"] <= 1 for each in found)
    assert "P@1" in (tmp_path / "report.html").read_text()
    refused = ({"loss": "ce"}, {"loss": "mse"}, {"head": "histogram"}, {"softmax": "stablemax"})
    for wrong in (*refused, {"calibrate": "temperature"}):
        with pytest.raises(InputError, match="multilabel"):
            run(Recipe.of(data=DATA, epochs=1, **wrong))
