"""Ordinal and retrieval tasks: their splits, their metrics, and the way through the engine."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, cohen_kappa_score

import logitkit
from logitkit import data
from logitkit.engine import Recipe, metrics, run
from logitkit.errors import InputError


def test_ordinal_metrics_against_loops_and_scikit_learn():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(200, 5, generator=g).pow(3)
    p /= p.sum(1, keepdim=True)
    y = torch.randint(5, (200,), generator=g)
    found = metrics.ordinal(p, y)
    median, rps = [], []
    for row, level in zip(p.double().tolist(), y.tolist(), strict=True):
        total, steps = 0.0, []
        for value in row:
            total += value
            steps.append(total)
        median.append(next(k for k, below in enumerate(steps) if below >= 0.5))
        rps.append(sum((below - (level <= k)) ** 2 for k, below in enumerate(steps[:-1])) / 4)
    assert found["mae"] == pytest.approx(np.abs(np.array(median) - y.numpy()).mean())
    assert found["rps"] == pytest.approx(np.mean(rps))
    assert found["kappa"] == pytest.approx(cohen_kappa_score(median, y.numpy(), weights="quadratic"))
    assert found["accuracy"] == pytest.approx((p.argmax(1) == y).double().mean().item())


def test_retrieval_metrics_against_scikit_learn(monkeypatch):
    monkeypatch.setattr(metrics, "QUERIES", 17)
    g = torch.Generator().manual_seed(1)
    y = torch.randint(6, (60,), generator=g)
    y[0] = 99  # alone in its class: found by others, never asked for
    e = torch.randn(6, 8, generator=g)[y % 6] + torch.randn(60, 8, generator=g)
    found = metrics.retrieval(e, y)
    s = torch.cosine_similarity(e[:, None], e[None], dim=2).numpy()
    precisions, firsts, tens, came = [], [], [], np.zeros(60)
    for i in range(60):
        others = [j for j in range(60) if j != i]
        order = sorted(others, key=lambda j, i=i: -s[i, j])
        came[order[:10]] += 1
        relevant = np.array([int(y[j] == y[i]) for j in others])
        if relevant.any():
            precisions.append(average_precision_score(relevant, s[i, others]))
            firsts.append(y[order[0]] == y[i])
            tens.append(any(y[j] == y[i] for j in order[:10]))
    assert len(precisions) == 59
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found["r@1"] == pytest.approx(np.mean(firsts))
    assert found["r@10"] == pytest.approx(np.mean(tens))
    away = came - came.mean()
    assert found["hubness"] == pytest.approx((away**3).mean() / came.std() ** 3)


def test_retrieval_keeps_whole_classes_from_training():
    glyphs = data.load("glyphs:n=400,classes=20+task=retrieval")
    first, again, other = (data.split(glyphs, seed) for seed in (3, 3, 4))
    seen, unseen = set(first.train.y.tolist()), set(first.test.y.tolist())
    assert seen == set(range(16)) == set(first.val.y.tolist())
    assert unseen == set(range(16, 20))
    assert torch.equal(first.index["test"], again.index["test"])
    assert not torch.equal(first.index["test"], other.index["test"])
    for part in (first.train, first.val, first.test):  # the numbers are new, the names stay with the rows
        old = [glyphs.class_names[k] for k in glyphs.y[first.index[name_of(first, part)]].tolist()]
        assert old == [part.class_names[k] for k in part.y.tolist()]
    with pytest.raises(InputError, match="3 classes, fewer than the 4"):
        data.split(data.load("iris+task=retrieval"), 0)


def name_of(split, part):
    return next(name for name in ("train", "val", "test") if getattr(split, name) is part)


@pytest.mark.parametrize(
    ("source", "primary", "settings"),
    [
        ("mixture:n=400,classes=5,dim=8+task=ordinal", "mae", {"calibrate": "temperature"}),
        ("glyphs:n=600,classes=30,size=12+task=retrieval", "map", {"head": "normalized_softmax"}),
    ],
)
def test_a_run_learns_and_is_saved(tmp_path, source, primary, settings):
    recipe = Recipe.of(data=source, epochs=8, lr=3e-3, **settings)
    result = run(recipe)
    untrained = run(recipe.model_copy(update={"lr": 1e-9}))
    better = result.metrics[primary] - untrained.metrics[primary]
    assert better < -0.2 if primary == "mae" else better > 0.05
    assert f"noise_{primary}" in result.metrics
    result.predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    rows = data.load(source).take(torch.arange(4))
    expected, found = result.predictor.predict(rows), again.predict(rows)
    assert torch.equal(expected, found) if isinstance(found, torch.Tensor) else expected == found


def test_comparisons_report_what_the_task_asks(tmp_path):
    small = {"epochs": 1, "seeds": 2, "jobs": 1}
    for source, names in (("wine+task=ordinal", ("RPS", "kappa")), ("digits+task=retrieval", ("mAP", "R@1"))):
        result = logitkit.compare(data=source, loss="ce,ldr", folder=tmp_path / source[:4], **small)
        result.report(tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert all(name in page for name in names)
    with pytest.raises(InputError, match="retrieval model has no class probabilities"):
        result.best.predict_proba(data.load("digits").take(torch.arange(2)))
    with pytest.raises(InputError, match=r"\+task=ordinal needs classes"):
        data.load("diabetes+task=ordinal")
    with pytest.raises(InputError, match="is not a metric of retrieval"):
        logitkit.compare(data="digits+task=retrieval", loss="ce,ldr", metric="accuracy", folder=tmp_path)
