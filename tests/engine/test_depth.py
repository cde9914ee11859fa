"""Depth maps through the engine: a number for every pixel, some of them unknown."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.cli.predictions import write_predictions
from logitkit.engine import Batch, Prepared, Recipe, Trainer, load, run
from logitkit.engine import metrics as M
from logitkit.errors import InputError

SOURCE = "scenes:n=60,size=16+task=depth"
SMALL = {"data": SOURCE, "model": "cnn(width=8,pools=2)", "epochs": 2}


@pytest.fixture(scope="module")
def holed():
    """A third of the depths are unknown, of the first image all but one."""
    dataset = data.load(SOURCE)
    hidden = torch.rand(dataset.y.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    hidden[:, 0, 0] = False
    hidden[:, 4:8, 4:8] = True
    return replace(dataset, y=dataset.y.masked_fill(hidden, math.nan))


@pytest.fixture(scope="module")
def prepared(holed):
    return Prepared.of(data.split(holed, 0))


def test_metrics_are_loops_over_known_pixels():
    g = torch.Generator().manual_seed(0)
    y = 0.1 + torch.rand(3, 4, 5, generator=g)
    found = y + 0.3 * torch.randn(3, 4, 5, generator=g)
    y[torch.rand(3, 4, 5, generator=g) < 0.3] = math.nan
    pairs = [(p, t) for p, t in zip(found.flatten().tolist(), y.flatten().tolist(), strict=True) if t == t]
    assert 20 < len(pairs) < 60
    assert min(p for p, _ in pairs) < 0
    n = len(pairs)
    expected = {
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "delta1": sum(p > 0 and max(p / t, t / p) < 1.25 for p, t in pairs) / n,
    }
    assert M.depth(found, y) == pytest.approx(expected, rel=1e-6)


def test_statistics_are_of_known_training_pixels(holed, prepared):
    known = data.split(holed, 0).train.y.numpy()
    assert prepared.preprocessor.target_mean == pytest.approx(np.nanmean(known.astype(float)))
    assert prepared.preprocessor.target_std == pytest.approx(np.nanstd(known.astype(float)))
    y = prepared.train[1]
    assert y.isnan().equal(torch.from_numpy(known).isnan())
    assert prepared.shape.vmin < y.nan_to_num().min()
    assert prepared.shape.vmax > y.nan_to_num().max()


def test_losses_see_the_mean_of_each_patch_and_heads_of_depth_the_patch(prepared):
    x, y = (t[:4] for t in prepared.train)
    means, patches = [], []
    for image in y.numpy():
        for i in range(0, 16, 4):
            for j in range(0, 16, 4):
                patch = image[i : i + 4, j : j + 4].flatten()
                patches.append(patch)
                known = patch[~np.isnan(patch)]
                means.append(known.mean() if len(known) else math.nan)
    means = torch.tensor(means)
    assert means.isnan().sum() == 4
    one = Trainer(Recipe.of(**SMALL), prepared)
    torch.testing.assert_close(one.network.labels(y).flatten(), means, equal_nan=True)
    features = one.network.maps(x).permute(0, 2, 3, 1).reshape(64, -1)
    scores = F.linear(features, one.network.head.weight, one.network.head.bias)[:, 0]
    some = ~means.isnan()
    torch.testing.assert_close(
        one.objective(one.network, Batch(x, y, torch.arange(4))), F.mse_loss(scores[some], means[some])
    )
    many = Trainer(Recipe.of(**SMALL, head="soft_token(codes=8)"), prepared).network
    found = many.labels(y)
    assert found.shape == (4, 16, 16)
    np.testing.assert_array_equal(found.flatten(0, 1).numpy(), np.stack(patches))


def test_patches_are_put_together_where_they_came_from(prepared):
    trained = run(Recipe.of(**SMALL, head="soft_token(codes=8, hard=True)"), prepared)
    network, x = trained.predictor.network, prepared.test[0][:3]
    maps = trained.predictor.depths(x)
    scores, codes = network(x), network.head.codebook.vectors
    for n in range(3):
        for i in range(4):
            for j in range(4):
                code = codes[scores[16 * n + 4 * i + j].argmax()].view(4, 4)
                expected = prepared.preprocessor.inverse_target(code)
                torch.testing.assert_close(maps[n, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4], expected)


def test_every_head_and_loss_for_numbers_trains_on_depths_of_which_some_are_unknown(prepared):
    constant = prepared.preprocessor.target_mean
    _, y = prepared.test
    at_most = 2 * M.depth(torch.full_like(y, constant), y)["rmse"]
    for settings in (
        {"loss": "huber"}, {"head": "hl_gauss"}, {"head": "fourier_regression"}, {"head": "soft_token"},
        {"head": "soft_token", "precision": "bf16"}, {"head": "soft_token", "model": "cnn(width=8,pools=0)"},
        {"model": "cnn(width=8,pools=3)"},
    ):  # fmt: skip
        assert run(Recipe.of(**{**SMALL, "epochs": 1, **settings}), prepared).metrics["rmse"] < at_most


def test_maps_that_do_not_divide_the_image_serve_heads_of_one_number():
    source = "scenes:n=20,size=15+task=depth"
    prepared = Prepared.of(data.split(data.load(source), 0))
    settings = {**SMALL, "data": source, "model": "cnn(width=8,pools=1)"}
    trained = run(Recipe.of(**settings), prepared).predictor
    assert trained.depths(prepared.test[0]).shape == (4, 15, 15)
    y = prepared.train[1][:1]
    labels = trained.network.labels(y).view(7, 7)
    for i in range(7):
        for j in range(7):
            rows, columns = (slice(15 * k // 7, -(-15 * (k + 1) // 7)) for k in (i, j))
            assert labels[i, j].item() == pytest.approx(y[0, rows, columns].mean().item(), abs=1e-5)
    with pytest.raises(InputError, match=r"7x7 positions .* do not divide images of 15x15"):
        run(Recipe.of(**settings, head="soft_token"), prepared)


def test_a_comparison_ranks_heads_and_its_winner_can_be_used(tmp_path):
    results = [
        logitkit.compare(
            **SMALL,
            seeds=1,
            jobs=jobs,
            folder=tmp_path / str(jobs),
            store=f"sqlite:///{tmp_path}/{jobs}.sqlite",
        )
        for jobs in (1, 2)
    ]
    found, again = ({row.label: row.means["rmse"] for row in each.ranking} for each in results)
    assert list(found) == list(again)
    assert found == again
    assert set(found) == {"head=linear", "head=soft_token", "head=soft_token(hard=True)"}
    assert len(set(found.values())) == 3
    x = data.load(SOURCE).x[:3]
    best = results[0].best
    best.save(tmp_path / "saved")
    maps = load(tmp_path / "saved").predict(x)
    assert maps.equal(best.predict(x))
    assert maps.shape == (3, 16, 16)
    written = tmp_path / "depths.csv"
    assert write_predictions(best, SOURCE, written) == 60
    first = written.read_text().splitlines()[1].split()
    assert [float(v) for v in first] == pytest.approx(maps[0].flatten().tolist(), rel=1e-4)


def test_a_saved_soft_token_model_tells_the_same_depths(prepared, tmp_path):
    trained = run(Recipe.of(**SMALL, head="soft_token(codes=8)"), prepared).predictor
    trained.save(tmp_path)
    assert load(tmp_path).depths(prepared.test[0]).equal(trained.depths(prepared.test[0]))


def test_maps_can_come_from_files_and_arrays(tmp_path):
    source = data.load("scenes:n=20,size=16+task=depth")
    x, y = source.x.numpy(), source.y.numpy().copy()
    y[:, 3:5] = math.nan
    np.savez(tmp_path / "maps.npz", x=x, y=y)
    for found in (data.load(f"{tmp_path}/maps.npz+task=depth"), data.load((x, y), task="depth")):
        assert found.task == "depth"
        assert found.kind == "image"
        np.testing.assert_array_equal(found.y.numpy(), y)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (SOURCE, {"model": "mlp"}, "no map of features over the image, which a depth task needs"),
        (SOURCE, {"loss": "focal"}, "is a depth task"),
        (SOURCE, {"head": "linear", "loss": "soft_token"}, "write head=soft_token"),
        (SOURCE, {"calibrate": "temperature"}, "this is a depth task"),
        ("digits", {"model": "cnn", "head": "soft_token"}, "cannot do classification"),
        ("digits+task=depth", {}, "digits has none"),
        (SOURCE + "+noise=0.2", {}, "no wrong labels"),
        (SOURCE.replace("depth", "regression"), {}, "no effect"),
    ],
)
def test_what_cannot_be_is_said(source, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "data": source, "folder": tmp_path, **settings})


def test_what_is_no_depth_is_said(tmp_path):
    x, y = torch.rand(6, 1, 8, 8), 1 + torch.rand(6, 8, 8)
    blind, zero = y.clone(), y.clone()
    blind[:2], zero[0, 0, 0] = math.nan, 0.0
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n3,4\n")
    for source, message in (
        ((x, blind), "2 images without a known depth"), ((x, zero), "positive and finite"),
        ((x, y[:, :4]), r"labels \(6, 4, 8\)"), ((x.flatten(1), y), "depth needs images"),
        ((x, y.numpy().astype(str)), "where numbers are needed"), (f"{table}:b", "one value per row"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            data.load(source, task="depth")
