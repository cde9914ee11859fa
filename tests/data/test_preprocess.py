"""Preprocessing against scikit-learn's transformers, and the saved state."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from logitkit import data
from logitkit.data import Preprocessor
from logitkit.errors import InputError


def split_of(spec: str) -> data.Split:
    return data.split(data.load(spec), 0)


def test_vectors_agree_with_standard_scaler() -> None:
    split = split_of("wine")
    mine = Preprocessor().fit(split.train).transform(split.test)
    oracle = StandardScaler().fit(split.train.x.numpy()).transform(split.test.x.numpy())
    np.testing.assert_allclose(mine.numpy(), oracle, atol=1e-5)
    assert mine.dtype == torch.float32


def test_a_constant_column_becomes_zero() -> None:
    x = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    pre = Preprocessor().fit(data.load((x, [0, 1, 0])))
    assert pre.transform(torch.tensor([[0.1, 2.0], [5.0, 2.0]])).tolist() == [[0, 0], [0, 0]]


def test_images_are_standardised_per_channel() -> None:
    train = data.load("attributes:n=60,classes=4")
    x = Preprocessor().fit(train).transform(train)
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    step = (x[0] - x[1]) / (train.x[0] - train.x[1])
    flat = step.flatten(1)
    assert torch.allclose(
        flat, flat.nanmedian(dim=1, keepdim=True).values.expand_as(flat), rtol=1e-2, equal_nan=True
    )


def test_tables_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    n = 300
    frame = pl.DataFrame(
        {
            "a": np.where(rng.random(n) < 0.2, np.nan, rng.normal(50, 9, n)),
            "b": rng.normal(size=n),
            "c": rng.choice(["u", "v", "w"], n),
            "y": rng.choice(["p", "q"], n),
        }
    ).with_columns(pl.col("a").fill_nan(None))
    train, test = frame[:200], frame[200:].with_columns(c=pl.Series(["new", *frame["c"][201:]]))
    pre = Preprocessor().fit(data.load(train, label="y"))
    oracle = ColumnTransformer(
        [
            ("a", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["a"]),
            ("missing", SimpleImputer(add_indicator=True), ["a"]),
            ("b", StandardScaler(), ["b"]),
            ("c", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["c"]),
        ]
    ).fit(train.to_pandas())
    expected = np.delete(oracle.transform(test.to_pandas()), 1, axis=1)
    np.testing.assert_allclose(pre.transform(data.load(test, label="y")).numpy(), expected, atol=1e-6)
    assert pre.input_shape == (6,)


def test_indicators_only_where_training_missed_values_and_never_nan() -> None:
    train = data.load(
        pl.DataFrame({"a": [1.0, 3.0, 2.0], "c": ["u", None, "u"], "y": ["p", "q", "p"]}), label="y"
    )
    pre = Preprocessor().fit(train)
    assert pre.input_shape == (3,)  # a, c=u, c missing
    rows = pl.DataFrame({"a": [None, 1.0], "c": [None, "other"]}, schema={"a": pl.Float64, "c": pl.String})
    x = pre.transform(data.load_unlabelled(rows, like=pre))
    assert x[0].tolist() == [0, 0, 1]
    assert x[1, 1:].tolist() == [0, 0]


def test_dates_count_in_days() -> None:
    dates = pl.Series(["2024-01-01", "2024-01-02", "2024-03-01"]).str.to_date()
    train = data.load(pl.DataFrame({"d": dates, "y": ["p", "q", "p"]}), label="y")
    oracle = StandardScaler().fit_transform([[0], [1], [60]])
    np.testing.assert_allclose(Preprocessor().fit(train).transform(train).numpy(), oracle, atol=1e-6)


def test_columns_are_found_by_name() -> None:
    frame = pl.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 5, 2], "y": ["p", "q", "p"]})
    pre = Preprocessor().fit(data.load(frame, label="y"))
    expected = pre.transform(data.load(frame, label="y"))
    shuffled = frame.select("b", extra=pl.lit("x"), a="a")
    assert torch.equal(pre.transform(data.load_unlabelled(shuffled, like=pre)), expected)
    with pytest.raises(InputError, match="no column 'b'"):
        pre.transform(data.load_unlabelled(frame.select("a"), like=pre))


def test_a_column_that_changed_its_kind() -> None:
    frame = pl.DataFrame({"code": ["7", "A", "12"], "size": [1, 2, 3], "y": ["p", "q", "p"]})
    pre = Preprocessor().fit(data.load(frame, label="y"))
    whole = pl.DataFrame({"code": [12, 7], "size": [1, 2]})
    x = pre.transform(data.load_unlabelled(whole, like=pre))
    assert x[:, :3].tolist() == [[1, 0, 0], [0, 1, 0]]  # levels 12, 7, A
    words = pl.DataFrame({"code": ["7"], "size": ["big"]})
    with pytest.raises(InputError, match="'size' was a number in training and is a category here"):
        pre.transform(data.load_unlabelled(words, like=pre))
    empty = pl.DataFrame({"code": [None], "size": [None]})
    assert pre.transform(data.load_unlabelled(empty, like=pre)).tolist() == [[0, 0, 0, 0]]


def test_rare_levels_of_a_huge_category_count_as_unseen() -> None:
    values = ["common"] * 5 + [f"v{i:04d}" for i in range(400)]
    frame = pl.DataFrame({"c": values, "y": ["p", "q", "p", "q", "p"] * 81})
    pre = Preprocessor().fit(data.load(frame, label="y"))
    assert pre.input_shape == (255,)
    assert pre.transform(data.load_unlabelled(frame, like=pre))[0].sum() == 1


@pytest.mark.parametrize("spec", ["wine", "digits", "mixed", "recall:n=20", "friedman:n=50"])
def test_saved_state_transforms_bit_for_bit(spec: str) -> None:
    split = split_of(spec)
    pre = Preprocessor().fit(split.train)
    meta, tensors = pre.state()
    again = Preprocessor.from_state(json.loads(json.dumps(meta)), {k: v.clone() for k, v in tensors.items()})
    assert torch.equal(again.transform(split.test), pre.transform(split.test))
    assert (again.input_shape, again.vocabulary) == (pre.input_shape, pre.vocabulary)
    assert tuple(pre.transform(split.test).shape[1:]) == pre.input_shape
    assert torch.equal(again.transform_target(split.test.y), pre.transform_target(split.test.y))


def test_tokens_pass_unchanged() -> None:
    split = split_of("text:stdlib+limit=30+length=8")
    pre = Preprocessor().fit(split.train)
    assert pre.transform(split.test).dtype == torch.int64
    assert torch.equal(pre.transform(split.test), split.test.x)
    assert pre.vocabulary == 256


def test_regression_targets_there_and_back() -> None:
    split = split_of("diabetes")
    pre = Preprocessor().fit(split.train)
    z = pre.transform_target(split.train.y)
    assert float(z.mean()) == pytest.approx(0, abs=1e-6)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(pre.inverse_target(pre.transform_target(split.test.y)), split.test.y, rtol=1e-5)


def test_the_wrong_kind_or_shape_is_refused() -> None:
    images, table = split_of("digits").train, split_of("mixed").train
    on_images, on_table = Preprocessor().fit(images), Preprocessor().fit(table)
    with pytest.raises(InputError, match="images of shape"):
        on_images.transform(torch.zeros(2, 1, 9, 9))
    with pytest.raises(InputError, match="not on a table"):
        on_images.transform(table)
    with pytest.raises(InputError, match="named columns"):
        on_table.transform(torch.zeros(2, 12))


def test_unlabelled_sources(tmp_path) -> None:
    from PIL import Image

    digits = data.load("digits")
    pre = Preprocessor().fit(digits)
    assert torch.equal(data.load_unlabelled("digits", like=pre), digits.x)
    np.save(tmp_path / "x.npy", digits.x[:5].numpy())
    np.savez(tmp_path / "x.npz", x=digits.x[:5].numpy())
    for path in ("x.npy", "x.npz"):
        assert torch.equal(data.load_unlabelled(tmp_path / path, like=pre), digits.x[:5])
    for i in range(3):
        Image.new("RGB", (20, 30), (50 * i,) * 3).save(tmp_path / f"{i}.png")
    x = data.load_unlabelled(tmp_path, like=pre)
    assert x.shape == (3, 1, 8, 8)
    assert torch.allclose(x[:, 0, 0, 0] * 255, torch.tensor([0.0, 50.0, 100.0]), atol=1e-3)

    mixed = data.load(pl.DataFrame({"a": [1.0, 2, 3], "y": ["p", "q", "p"]}), label="y")
    (tmp_path / "rows.csv").write_text("a,note\n2,x\n,y\n")
    z = (
        Preprocessor()
        .fit(mixed)
        .transform(data.load_unlabelled(f"{tmp_path}/rows.csv", like=Preprocessor().fit(mixed)))
    )
    assert z.tolist() == [[0], [0]]


def test_out_of_distribution_vectors_keep_columns_and_lose_their_relation() -> None:
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)) + 0.1 * torch.arange(500)[:, None] % 1
    x = torch.cat([x, 2 * x, -x], dim=1)
    ood = data.out_of_distribution(x, x, seed=0)
    assert torch.equal(ood.sort(dim=0).values, x.sort(dim=0).values)
    assert torch.corrcoef(x.T)[0, 1] > 0.99
    assert torch.corrcoef(ood.T).fill_diagonal_(0).abs().max() < 0.2
    assert torch.equal(ood, data.out_of_distribution(x, x, seed=0))
    assert not torch.equal(ood, data.out_of_distribution(x, x, seed=1))


def test_out_of_distribution_images_are_noise_inverted_and_permuted() -> None:
    split = split_of("digits")
    pre = Preprocessor().fit(split.train)
    test, train = pre.transform(split.test), pre.transform(split.train)
    ood = data.out_of_distribution(test, train, seed=0)
    assert ood.shape == test.shape
    noise, inverted, permuted = ood.tensor_split(3)
    _, original, source = test.tensor_split(3)
    assert noise.min() >= train.min()
    assert noise.max() <= train.max()
    assert float(noise.std()) == pytest.approx(float(train.max() - train.min()) / 12**0.5, rel=0.02)
    assert torch.allclose(inverted + original, (train.max() + train.min()).expand_as(original))
    assert torch.equal(permuted.flatten(1).sort().values, source.flatten(1).sort().values)
    assert not torch.equal(permuted, source)
