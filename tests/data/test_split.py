"""Splits: proportions, determinism, and where noise and imbalance go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitkit import data
from logitkit.data.base import Dataset
from logitkit.errors import InputError


def labelled(y: torch.Tensor) -> Dataset:
    return Dataset("toy", torch.arange(len(y)).float()[:, None], y, "classification", "vector")


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    test=st.sampled_from([0.1, 0.2, 0.5]),
    val=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 99),
)
def test_every_class_keeps_its_share(sizes: list[int], test: float, val: float, seed: int) -> None:
    y = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    split = data.split(labelled(y), seed, test=test, val=val)
    rows = torch.cat(list(split.index.values()))
    assert rows.sort().values.tolist() == list(range(len(y)))
    for k, n in enumerate(sizes):
        counts = {part: int((getattr(split, part).y == k).sum()) for part in ("train", "val", "test")}
        assert abs(counts["test"] - n * test) <= 1
        assert abs(counts["val"] - n * val) <= 1 + (n < 4)
        assert counts["train"] >= 1
        assert counts["test"] >= 1
        assert (counts["val"] >= 1) == (val > 0)
    if min(sizes) >= 12:
        assert len(split.test) == round(len(y) * test)


def test_index_says_where_rows_came_from() -> None:
    digits = data.load("digits+imbalance=5")
    split = data.split(digits, 3)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(split, part).x, digits.x[split.index[part]])


def test_seed_decides() -> None:
    digits = data.load("digits")
    first, again, other = (data.split(digits, seed).index["test"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert data.split(digits, 0).test.y.bincount().tolist() == pytest.approx(
        (digits.y.bincount() / 5).tolist(), abs=1
    )


def test_rows_are_not_picked_by_position() -> None:
    split = data.split(labelled(torch.zeros(4000).long().index_fill(0, torch.arange(2000), 1)), 0)
    assert split.test.x.mean() == pytest.approx(2000, abs=120)


def test_regression_targets_have_the_same_distribution_in_each_part() -> None:
    split = data.split(data.load("friedman:n=500"), 0)
    everything = torch.cat([split.train.y, split.val.y, split.test.y])
    deciles = everything.quantile(torch.linspace(0.1, 0.9, 9))
    for part in (split.train, split.val, split.test):
        share = torch.bucketize(part.y, deciles).bincount(minlength=10) / len(part)
        assert torch.allclose(share, torch.full((10,), 0.1), atol=0.011)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_noise_touches_training_and_validation_labels_only(kind: str) -> None:
    digits = data.load(f"digits+noise=0.4+noise_type={kind}")
    noisy, clean = data.split(digits, 0), data.split(data.load("digits"), 0)
    for part in ("train", "val"):
        rows, truth = getattr(noisy, part), getattr(clean, part)
        assert torch.equal(rows.extras["y_clean"], truth.y)
        wrong = rows.y != truth.y
        assert torch.equal(wrong, rows.extras["noisy"])
        assert int(wrong.sum()) == round(0.4 * len(rows))
    assert torch.equal(noisy.test.y, clean.test.y)
    assert not noisy.test.extras["noisy"].any()
    moved = (noisy.train.y - noisy.train.extras["y_clean"])[noisy.train.extras["noisy"]] % 10
    if kind == "pair":
        assert moved.unique().tolist() == [1]
    else:
        expected = len(moved) / 9
        statistic = float(((moved.bincount(minlength=10)[1:] - expected) ** 2 / expected).sum())
        assert statistic < 26.1  # chi-squared with 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_noise_on_sequences_replaces_tokens_that_are_scored(kind: str) -> None:
    spec = "strings:n=200,length=5"
    noisy, clean = (data.split(data.load(s), 0) for s in (f"{spec}+noise=0.25+noise_type={kind}", spec))
    for part in ("train", "val"):
        rows, truth = getattr(noisy, part), getattr(clean, part)
        assert torch.equal(rows.extras["y_clean"], truth.y)
        wrong = rows.y != truth.y
        assert torch.equal(wrong, rows.extras["noisy"])
        assert torch.equal(rows.y == data.IGNORE, truth.y == data.IGNORE)
        assert int(wrong.sum()) == round(0.25 * 5 * len(rows))
        if kind == "pair":
            assert torch.equal(rows.y[wrong], (truth.y[wrong] + 1) % 12)
        assert torch.equal(rows.x, truth.x)
    assert torch.equal(noisy.test.y, clean.test.y)


def test_options_do_not_move_the_split_and_are_spent() -> None:
    plain, noisy = (data.split(data.load(spec), 5) for spec in ("digits", "digits+noise=0.3"))
    assert torch.equal(plain.index["train"], noisy.index["train"])
    assert noisy.train.options == plain.train.options


def test_imbalance_is_an_exponential_tail_in_training_only() -> None:
    balanced = data.load("mixture:n=5000,classes=5")
    plain, tailed = (data.split(data.load(balanced, imbalance=r), 0) for r in (1, 100))
    counts = tailed.train.y.bincount().double()
    ideal = 600 * 100 ** -(torch.arange(5).double() / 4)
    assert torch.all((counts - ideal).abs() <= 1)
    assert torch.equal(tailed.val.y, plain.val.y)
    assert torch.equal(tailed.test.x, plain.test.x)


def test_a_fixed_split_keeps_its_test_rows() -> None:
    y = torch.arange(100) % 2
    fixed = {"train": torch.arange(60), "test": torch.arange(60, 100)}
    source = Dataset("own", torch.zeros(100, 1), y, "classification", "vector", fixed_split=fixed)
    for seed in (0, 1):
        split = data.split(source, seed, val=0.5)
        assert torch.equal(split.index["test"], fixed["test"])
        assert (len(split.train), len(split.val)) == (30, 30)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (torch.zeros(10).long(), "every row of toy has the label 0"),
        (torch.tensor([0] * 10 + [1] * 2), "class 1 of toy has 2 row(s), fewer than the 3"),
        (torch.arange(10), "has 10 rows of 10 classes"),
        (torch.tensor([0, 1]), "too few for 3 parts"),
    ],
)
def test_too_few_rows(y: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError) as caught:
        data.split(labelled(y), 0)
    assert says in str(caught.value)


@pytest.mark.parametrize(("test", "val"), [(0.5, 0.5), (-0.1, 0.2), (1, 0)])
def test_fractions_out_of_range(test: float, val: float) -> None:
    with pytest.raises(InputError, match="fractions"):
        data.split(data.load("iris"), 0, test=test, val=val)
