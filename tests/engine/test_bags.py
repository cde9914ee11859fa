"""Bags through the engine: only the mean label of a bag is known, and a batch is made of whole bags."""

import math

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.data import Dataset
from logitkit.engine import Batch, Prepared, Recipe, Trainer, run
from logitkit.errors import InputError

MIXTURE = "mixture:n=405,classes=4,dim=6+bags=5"
SMALL = {"model": "mlp(hidden=(16,))", "batch_size": 20, "lr": 3e-3, "epochs": 2}


def trainer(**settings):
    recipe = Recipe.of(**{"data": MIXTURE, **SMALL, **settings})
    return Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))


def test_bags_are_means_of_the_labels_of_their_rows():
    source = data.load(MIXTURE)
    split = data.split(source, 3)
    plain = data.split(data.load("mixture:n=405,classes=4,dim=6"), 3)
    for part in ("train", "val"):
        rows, found = split.index[part], getattr(split, part)
        assert sorted(rows.tolist()) == sorted(plain.index[part].tolist())
        assert torch.equal(found.x, source.x[rows])
        assert found.num_classes == 4
        sizes = found.extras["bag"].bincount().tolist()
        assert sizes[:-1] == [5] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= 5
        for bag in range(len(sizes)):
            inside = [i for i in range(len(rows)) if found.extras["bag"][i] == bag]
            labels = [source.y[rows[i]].item() for i in inside]
            mean = torch.tensor([labels.count(k) / len(labels) for k in range(4)])
            for i in inside:
                torch.testing.assert_close(found.y[i], mean)
    assert torch.equal(split.test.y, plain.test.y)
    assert torch.equal(split.index["test"], plain.index["test"])
    assert not torch.equal(split.index["train"], data.split(source, 4).index["train"])


def test_nothing_of_the_labels_is_left_but_the_means():
    """Within a bag, labels may change places without any consequence."""
    source = data.load(MIXTURE + "+noise=0.2")
    split = data.split(source, 0)
    assert set(split.train.extras) == {"bag"}
    first = Dataset("x", source.x, source.y, "classification", "vector", fixed_split=split.index)
    bags = data.split(data.load(first, bags=5), 1)
    moved = source.y.clone()
    for part in ("train", "val"):
        rows, bag = bags.index[part], getattr(bags, part).extras["bag"]
        for each in bag.unique():
            inside = rows[bag == each]
            moved[inside] = source.y[inside.roll(1)]
    assert (moved != source.y).any()
    second = Dataset("x", source.x, moved, "classification", "vector", fixed_split=split.index)
    recipe = Recipe.of(**{**SMALL, "data": "x+bags=5"})
    runs = [run(recipe, Prepared.of(data.split(data.load(each, bags=5), 1))) for each in (first, second)]
    assert runs[0].curve == runs[1].curve
    assert runs[0].metrics == runs[1].metrics


def test_batches_are_whole_bags():
    each = trainer()
    batches = []
    each.algorithm.step = lambda _, batch: batches.append(batch.ids) or torch.tensor(0.0)
    each.run()
    bag = data.split(data.load(MIXTURE), 0).train.extras["bag"]
    assert len(bag) % 5
    first = batches[: len(batches) // 2]
    assert sorted(torch.cat(first).tolist()) == list(range(len(bag)))
    assert not torch.equal(first[0], batches[len(batches) // 2][:20])
    for ids in batches:
        for inside in ids.split(5):
            assert len(bag[inside].unique()) == 1
            assert (bag == bag[inside[0]]).sum() == len(inside)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_the_loss_is_the_formula_over_the_bags_of_the_batch(rho):
    each = trainer(loss=f"aggregate(base=ce, rho={rho})")
    x, y = each.data.train
    ids = torch.tensor([*range(10, 15), *range(240, len(y))])
    assert len(ids) % 5
    found = each.objective(each.network, Batch(x[ids], y[ids], ids))
    p = each.network(x[ids]).softmax(1).double().tolist()
    total = 0.0
    for start, end in [(0, 5)] + [(k, min(k + 5, len(ids))) for k in range(5, len(ids), 5)]:
        mean, size = y[ids[start]].tolist(), end - start
        of_bag = -sum(mean[k] * math.log(sum(p[i][k] for i in range(start, end)) / size) for k in range(4))
        of_rows = -sum(mean[k] * math.log(p[i][k]) for i in range(start, end) for k in range(4)) / size
        total += size * ((1 - rho) * of_bag + rho * of_rows)
    assert found.item() == pytest.approx(total / len(ids), rel=1e-5)


def test_validation_compares_bags():
    each = trainer()
    x, y = each.data.val
    p = each.network(x).softmax(1).double()
    nll, bags = 0.0, list(torch.arange(len(y)).split(5))
    for rows in bags:
        nll -= len(rows) * (y[rows[0]].double() * p[rows].mean(0).log()).sum().item() / len(y)
    found = each.validate()
    assert found["val_nll"] == pytest.approx(nll, rel=1e-6)
    assert found["val_score"] == -found["val_nll"]


def test_resuming_changes_nothing(tmp_path):
    whole = trainer(epochs=3)
    whole.run()
    path = tmp_path / "c.safetensors"

    class Stop(Exception):
        pass

    first = trainer(epochs=3)
    first._checkpoint, first._every = path, 4
    step, done = first.algorithm.step, []

    def stopping(each, batch):
        done.append(1)
        if len(done) == 19:
            raise Stop
        return step(each, batch)

    first.algorithm.step = stopping
    with pytest.raises(Stop):
        first.run()
    second = trainer(epochs=3)
    second._checkpoint = path
    second.run()
    for a, b in zip(whole.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_comparison_report_and_saved_model(tmp_path):
    result = logitkit.compare(
        data="digits+bags=8", loss="aggregate(base=ce, rho=0),aggregate(base=ce),aggregate(base=ce, rho=1)",
        epochs=4, lr=1e-2, seeds=2, jobs=1, folder=tmp_path,
    )  # fmt: skip
    found = result.to_dict()["runs"]
    assert len(found) == 6
    assert max(each["metrics"]["accuracy"] for each in found) > 0.8
    assert all("ood_auroc" in each["metrics"] for each in found)
    page = result.report(tmp_path / "report.html").read_text()
    assert "validation cross-entropy of bags" in page
    rows = data.load("digits").take(torch.arange(5))
    again = logitkit.load(result.winner)
    assert torch.equal(again.predict_proba(rows), result.best.predict_proba(rows))
    assert again.predict_proba(rows).shape == (5, 10)
    assert again.predict(rows) == result.best.predict(rows)


def test_the_default_loss_is_the_aggregate_loss_and_is_tuned(tmp_path):
    automatic, written = trainer(), trainer(loss="aggregate(base=ce)")
    assert type(automatic.objective.losses[0]) is type(written.objective.losses[0])
    assert automatic.objective.losses[0].base == "ce"
    result = logitkit.compare(
        **{**SMALL, "data": MIXTURE, "lr": [1e-3, 3e-3], "loss": "auto", "epochs": 1},
        tune=3, seeds=1, jobs=1, folder=tmp_path,
    )  # fmt: skip
    tuned = [r["recipe"]["loss"] for r in result.records.values() if "loss.rho" in r["tuned"]]
    assert all("base=ce" in loss and "rho=" in loss for loss in tuned)


@pytest.mark.parametrize(
    "extra", ["softmax=stablemax", "head=normalized_softmax", "optimizer=sgd", "patience=1"]
)
def test_parts_that_see_rows_are_those_of_classification(extra):
    slot, value = extra.split("=")
    result = run(Recipe.of(**{**SMALL, "data": MIXTURE, slot: int(value) if value.isdigit() else value}))
    assert result.metrics["accuracy"] > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 64}, "batch_size=64 would cut bags of 5 rows; give a multiple of 5"),
        ({"loss": "ce"}, "loss=cross_entropy is for classification; the data is a bags task"),
        ({"regularize": "0.1*z_loss"}, "the data is a bags task"),
        ({"loss": "torch.nn:MSELoss"}, "your own code, which is not told bags"),
        ({"head": "cosine"}, "head=cosine learns from the label of each row"),
        ({"softmax": "tempnet"}, "softmax=tempnet learns from the label of each row"),
        ({"head": "histogram"}, "head=histogram cannot do bags"),
        ({"calibrate": "temperature"}, "this is a bags task"),
        ({"detect": "mahalanobis"}, "detect=mahalanobis needs the label of each row"),
        ({"algorithm": "ngame"}, "algorithm=ngame orders rows one by one and would cut bags of 5"),
        ({"data": "iris+bags=50"}, "iris.* has 30 rows in val, too few for a bag of 50"),
        ({"data": "diabetes+bags=5"}, r"\+bags is for classification, and diabetes asks for regression"),
        ({"data": "wine+task=ordinal+bags=5"}, r"\+bags is for classification, and wine asks for ordinal"),
        ({"data": "iris+bags=0"}, "bags=0 must be at least 1"),
        ({"data": "iris", "loss": "aggregate"}, "loss=aggregate is for bags"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_runs(settings, says, tmp_path):
    with pytest.raises(InputError, match=says):
        logitkit.compare(
            **{"data": MIXTURE, "seeds": 1, "folder": tmp_path, **SMALL, "epochs": [1, 2], **settings}
        )
