"""The main job: planning, running in parallel, tuning, ranking, and the saved winner."""

from __future__ import annotations

import json
import subprocess
import sys

import polars as pl
import pytest
import torch
from torch import nn

import logitkit
from logitkit import InputError, data
from logitkit.comparison import driver, make_plan
from logitkit.comparison.work import search_space, with_parameters
from logitkit.engine import Recipe
from logitkit.engine.checkpoint import load_state
from logitkit.engine.tasks import TASKS

SMALL = {"data": "digits+limit=400", "model": "mlp(hidden=(16,))", "epochs": 3, "seeds": 2}


def test_arms_are_the_product_of_what_varies():
    plan = make_plan({"loss": "ce,ldr(lam=1, margin=0.5)", "lr": "1e-3,1e-2", "data": "iris"}, seeds=3)
    assert plan.labels == (
        "loss=ce, lr=0.001", "loss=ce, lr=0.01",
        "loss=ldr(lam=1, margin=0.5), lr=0.001", "loss=ldr(lam=1, margin=0.5), lr=0.01",
    )  # fmt: skip
    assert len(plan.runs) == 12
    assert len({r.key for r in plan.runs}) == 12
    first = [r for r in plan.runs if r.seed == 0]
    assert {r.recipe.split_seed for r in first} == {0}


def test_keys_are_stable_across_processes_and_change_with_what_matters():
    code = (
        "from logitkit.comparison import make_plan;"
        "print(make_plan({'loss': 'cross_entropy,ldr', 'data': 'iris'}, seeds=1).runs[1].key)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    keys = {
        name: make_plan(settings, seeds=1, tune=tune).runs[1].key
        for name, settings, tune in (
            ("same", {"loss": "ce,ldr", "data": "iris"}, 0),
            ("epochs", {"loss": "ce,ldr", "data": "iris", "epochs": 31}, 0),
            ("data", {"loss": "ce,ldr", "data": "iris+noise=0.1"}, 0),
            ("tune", {"loss": "ce,ldr", "data": "iris"}, 2),
        )
    }
    assert keys["same"] == other
    assert len(set(keys.values())) == 4


def test_numbers_do_not_depend_on_jobs(tmp_path):
    one = logitkit.compare(loss=["ce", "focal"], jobs=1, folder=tmp_path / "1", **SMALL)
    two = logitkit.compare(loss=["ce", "focal"], jobs=2, folder=tmp_path / "2", **SMALL)
    for run in one.plan.runs:
        a, b = one.records[run.key], two.records[run.key]
        assert a["metrics"] == b["metrics"]
        assert a["curve"] == b["curve"]
    assert one.best.metrics == two.best.metrics


def test_spawned_processes_work_where_forking_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "start_method", lambda: "spawn")
    assert driver._jobs(None, 8) == 1
    result = logitkit.compare(loss=["ce", "focal"], jobs=2, folder=tmp_path, **SMALL)
    assert {row.runs for row in result.ranking} == {2}


def test_splits_are_stored_with_the_results(tmp_path):
    result = logitkit.compare(loss=["ce", "focal"], jobs=1, folder=tmp_path, **SMALL)
    for record in result.records.values():
        stored = load_state(tmp_path / record["split"]["file"])
        expected = data.split(data.load(SMALL["data"]), record["seed"]).index
        assert {part: rows.tolist() for part, rows in stored.items()} == {
            part: rows.tolist() for part, rows in expected.items()
        }


def test_adding_an_arm_runs_only_that_arm(tmp_path):
    logitkit.compare(loss=["ce", "focal"], jobs=1, folder=tmp_path, **SMALL)
    seen = []
    logitkit.compare(
        loss=["ce", "focal", "ldr"], jobs=1, folder=tmp_path, watch=lambda s: seen.append(s.finished), **SMALL
    )
    assert seen[0] >= 4  # four runs were there already
    assert seen[-1] == 6


def test_tuning_gives_every_arm_the_same_trials_and_never_sees_the_test_rows(tmp_path, monkeypatch):
    from logitkit.comparison import work

    judged = []
    real = work.run

    def spy(recipe, prepared, *, judge, **rest):
        judged.append((str(recipe.loss), recipe.seed, judge))
        return real(recipe, prepared, judge=judge, **rest)

    monkeypatch.setattr(work, "run", spy)
    result = logitkit.compare(loss=["ce", "focal"], tune=3, jobs=1, folder=tmp_path, **SMALL)
    for arm in ("cross_entropy", "focal"):
        for seed in (0, 1):
            mine = [j for name, s, j in judged if name.startswith(arm) and s == seed]
            assert mine == [False, False, False, True]
    tuned = [r["tuned"] for r in result.records.values()]
    assert any(tuned), "no trial ever beat the defaults, so nothing shows that tuned values are used"
    for record in result.records.values():
        for name, value in record["tuned"].items():
            assert str(value) in json.dumps(record["recipe"]), (name, value)


def test_search_space_comes_from_the_cards_and_respects_fixed_arguments():
    classes, numbers = TASKS["classification"], TASKS["regression"]
    space = search_space(Recipe.of(loss="ldr"), classes)
    assert "lr" in space
    assert "loss.lam" in space
    assert "softmax.temperature" in space
    assert "loss.lam" not in search_space(Recipe.of(loss="ldr(lam=3)"), classes)
    assert "loss.label_smoothing" in search_space(Recipe.of(), classes)
    space = search_space(Recipe.of(data="diabetes", head="histogram"), numbers)
    assert not [k for k in space if k.startswith(("loss.", "softmax."))]
    tuned = with_parameters(
        Recipe.of(), {"lr": 0.01, "loss.label_smoothing": 0.1, "model.hidden": [8, 8]}, "cross_entropy"
    )
    assert tuned.loss.kwargs == {"label_smoothing": 0.1}
    assert tuned.loss.name == "cross_entropy"
    assert tuned.model.kwargs == {"hidden": (8, 8)}


def test_a_diverging_arm_is_reported_and_ranked_last(tmp_path):
    result = logitkit.compare(
        lr=[1e-1, 1e20], optimizer="sgd", jobs=1, folder=tmp_path, schedule="constant", loss="ce", **SMALL
    )
    last = result.ranking[-1]
    assert (last.label, last.diverged, last.runs) == ("lr=1e+20", 2, 2)
    assert last.verdict == "too few runs"
    assert result.best.metrics["accuracy"] > 0.1


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV with numbers, categories, gaps and a text label, and its test rows of seed 0 in a second file."""
    folder = tmp_path_factory.mktemp("table")
    g = torch.Generator().manual_seed(0)
    n = 300
    a, b = torch.randn(n, generator=g), torch.randn(n, generator=g)
    colour = torch.randint(0, 3, (n,), generator=g)
    label = (a + 0.5 * (colour == 1) + 0.3 * torch.randn(n, generator=g) > 0).long()
    frame = pl.DataFrame(
        {
            "a": [None if i % 17 == 0 else float(v) for i, v in enumerate(a)],
            "b": b.numpy(),
            "colour": [
                None if i % 23 == 0 else ["red", "green", "blue"][c] for i, c in enumerate(colour.tolist())
            ],
            "label": [["no", "yes"][v] for v in label.tolist()],
        }
    )
    frame.write_csv(folder / "train.csv")
    return folder


def test_the_winner_reproduces_its_test_metrics_in_another_process(table, tmp_path):
    """Save, predict the test rows through the command line, and compute the metrics from the file."""
    source = f"{table / 'train.csv'}:label"
    result = logitkit.compare(
        data=source, loss=["ce", "focal"], calibrate="temperature", epochs=5, seeds=2, jobs=1, folder=tmp_path
    )
    recipe = result.best.recipe
    split = data.split(data.load(source), recipe.split_seed)
    rows = pl.read_csv(table / "train.csv")[split.index["test"].tolist()]
    rows.drop("label").write_csv(tmp_path / "test.csv")
    command = ["predict", str(result.winner), str(tmp_path / "test.csv"), "-o", str(tmp_path / "p.parquet")]
    subprocess.run([sys.executable, "-m", "logitkit", *command], check=True, capture_output=True)
    predicted = pl.read_parquet(tmp_path / "p.parquet")
    assert predicted.columns == ["prediction", "p_no", "p_yes"]
    y = rows["label"]
    assert (predicted["prediction"] == y).mean() == result.best.metrics["accuracy"]
    p = torch.from_numpy(predicted.select("p_no", "p_yes").to_numpy().copy())
    chosen = p.gather(1, torch.tensor([["no", "yes"].index(v) for v in y])[:, None])
    assert -chosen.double().log().mean().item() == result.best.metrics["nll"]

    code = (
        "import json, sys, logitkit; from logitkit import data; from logitkit.engine import Prepared\n"
        "m = logitkit.load(sys.argv[1]); split = data.split(data.load(sys.argv[2]), m.recipe.split_seed)\n"
        "p = Prepared.of(split)\n"
        "print(json.dumps(m.evaluate(*p.test, train=p.train)[0]))"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, str(result.winner), source], check=True, capture_output=True, text=True
    )
    assert json.loads(again.stdout) == result.best.metrics


def test_a_regression_winner_predicts_in_the_units_of_the_target(tmp_path):
    result = logitkit.compare(
        data="diabetes", head=["linear", "histogram"], epochs=30, seeds=2, jobs=1, folder=tmp_path
    )
    assert result.plan.metric == "rmse"
    assert result.ranking[0].mean <= result.ranking[1].mean
    values = result.best.predict("diabetes")
    y = data.load("diabetes").y
    assert (values - y).abs().mean() < (y - y.mean()).abs().mean()


class Net(nn.Module):
    """A model of the user's own."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())

    def forward(self, x):
        return self.body(x)


def test_the_users_own_model_in_a_comparison(tmp_path):
    result = logitkit.compare(**{**SMALL, "model": Net, "loss": ["ce", "focal"]}, jobs=2, folder=tmp_path)
    assert result.best.metrics["accuracy"] > 0.2
    with pytest.raises(InputError, match="trust_code"):
        logitkit.load(result.winner)


def test_table_json_and_csv_agree(tmp_path):
    result = logitkit.compare(loss=["ce", "focal"], jobs=1, folder=tmp_path, **SMALL)
    table = result.table()
    assert table["rank"].to_list() == [1, 2]
    assert table["accuracy"][0] >= table["accuracy"][1]
    result.save_csv(tmp_path / "runs.csv")
    result.save_json(tmp_path / "all.json")
    runs = pl.read_csv(tmp_path / "runs.csv")
    means = runs.group_by("recipe").agg(pl.col("accuracy").mean())
    for recipe, mean in means.iter_rows():
        assert table.filter(pl.col("recipe") == recipe)["accuracy"].item() == pytest.approx(mean)
    whole = json.loads((tmp_path / "all.json").read_text())
    assert len(whole["runs"]) == 4
    assert whole["study"]["data"]["fingerprint"] == data.load(SMALL["data"]).fingerprint


@pytest.mark.parametrize(
    "settings", [{"jobs": 0}, {"seeds": 0}, {"tune": -1}, {"metric": "aucc"}, {"los": "ce"}]
)
def test_mistakes_are_said_before_anything_runs(tmp_path, settings):
    with pytest.raises(InputError):
        logitkit.compare(**{**SMALL, **settings}, folder=tmp_path / "x")
    assert not (tmp_path / "x").exists()
