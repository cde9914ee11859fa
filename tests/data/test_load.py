"""Every kind of source, and what cannot be read."""

from __future__ import annotations

import datetime
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from logitkit import data
from logitkit.data.base import Column, Dataset, Table
from logitkit.errors import InputError

TABLE = """age,city,joined,member,income,label
31,Bonn,2024-01-01,true,1000.5,yes
,Kiel,2024-01-03,false,,no
45,,,true,2000,yes
28,Bonn,2023-12-31,,1500,no
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refuse(says: str, *args, **kwargs) -> None:
    with pytest.raises(InputError) as caught:
        data.load(*args, **kwargs)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digits_are_the_images_of_scikit_learn() -> None:
    digits, oracle = data.load("digits"), load_digits()
    assert (digits.kind, digits.task, digits.num_classes) == ("image", "classification", 10)
    assert torch.equal(digits.x[:, 0] * 16, torch.from_numpy(oracle.images).float())
    assert digits.y.tolist() == oracle.target.tolist()


@pytest.mark.parametrize(
    ("name", "rows", "width"), [("iris", 150, 4), ("wine", 178, 13), ("breast_cancer", 569, 30)]
)
def test_bundled_sets(name: str, rows: int, width: int) -> None:
    assert data.load(name).x.shape == (rows, width)
    assert data.load(name).x.dtype == torch.float32


def test_regression_has_no_classes() -> None:
    diabetes = data.load("diabetes")
    assert (diabetes.task, diabetes.y.dtype, diabetes.class_names) == ("regression", torch.float32, None)
    with pytest.raises(InputError, match="has no classes"):
        _ = diabetes.num_classes


def test_csv_columns_get_the_right_kind_and_their_gaps(tmp_path) -> None:
    dataset = data.load(write(tmp_path / "t.csv", TABLE) + ":label")
    columns = dataset.x.columns
    assert {name: c.kind for name, c in columns.items()} == {
        "age": "number", "city": "category", "joined": "date", "member": "number", "income": "number",
    }  # fmt: skip
    np.testing.assert_array_equal(columns["age"].values, [31, np.nan, 45, 28])
    np.testing.assert_array_equal(columns["member"].values, [1, 0, 1, np.nan])
    assert columns["city"].levels == ("Bonn", "Kiel")
    assert columns["city"].values.tolist() == [0, 1, -1, 0]
    epoch = datetime.date(1970, 1, 1)
    assert columns["joined"].values[0] == (datetime.date(2024, 1, 1) - epoch).days
    assert np.isnan(columns["joined"].values[2])
    assert (dataset.class_names, dataset.y.tolist()) == (("no", "yes"), [1, 0, 1, 0])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(tmp_path, separator: str) -> None:
    path = write(tmp_path / "t.csv", TABLE.replace(",", separator))
    plain = data.load(write(tmp_path / "u.csv", TABLE) + ":label")
    assert data.load(f"{path}:label").fingerprint == plain.fingerprint


def test_parquet_and_frames_agree_with_csv(tmp_path) -> None:
    plain = data.load(write(tmp_path / "t.csv", TABLE) + ":label")
    frame = pl.read_csv(tmp_path / "t.csv", try_parse_dates=True)
    frame.write_parquet(tmp_path / "t.parquet")
    assert data.load(f"{tmp_path}/t.parquet:label").fingerprint == plain.fingerprint
    assert data.load(frame, label="label").fingerprint == plain.fingerprint
    assert data.load(frame.lazy(), label="label").fingerprint == plain.fingerprint
    assert data.load(frame.to_pandas(), label="label").y.tolist() == plain.y.tolist()


@pytest.mark.parametrize(
    ("label", "task", "names"),
    [
        (["b", "a", "b", "a"], "classification", ("a", "b")),
        ([True, False, True, True], "classification", ("false", "true")),
        ([10, 2, 10, 2], "classification", ("2", "10")),
        ([0.5, 1.0, 2.0, 3.0], "regression", None),
    ],
)
def test_the_type_of_the_label_decides_the_task(label: list, task: str, names) -> None:
    dataset = data.load(pl.DataFrame({"x": [1.0, 2, 3, 4], "y": label}), label="y")
    assert (dataset.task, dataset.class_names) == (task, names)


def test_many_valued_whole_numbers_are_a_regression_target_unless_overridden() -> None:
    frame = pl.DataFrame({"x": range(100), "y": range(100)})
    assert data.load(frame, label="y").task == "regression"
    assert data.load(frame, label="y", task="classification").num_classes == 100
    few = pl.DataFrame({"x": range(4), "y": [1, 2, 1, 2]})
    assert data.load(few, label="y", task="regression").y.tolist() == [1, 2, 1, 2]


def test_bad_tables(tmp_path) -> None:
    table = write(tmp_path / "t.csv", TABLE)
    refuse("no column 'lable'. Did you mean 'label'?", f"{table}:lable")
    refuse("which column", table)
    refuse("is missing in 1 of 4 rows (the first is row 1)", f"{table}:income")
    refuse("is empty", write(tmp_path / "empty.csv", "") + ":y")
    refuse("has no rows", write(tmp_path / "header.csv", "x,y\n") + ":y")
    refuse("'a' in every row", write(tmp_path / "one.csv", "x,y\n1,a\n2,a\n") + ":y")
    refuse("no column besides the label", write(tmp_path / "y.csv", "y\na\nb\n") + ":y")
    refuse("cannot be read as a table", write(tmp_path / "no.parquet", "not parquet") + ":y")
    refuse("is infinite in 1 rows", pl.DataFrame({"x": [1.0, np.inf], "y": ["a", "b"]}), label="y")
    refuse("List(Int64)", pl.DataFrame({"x": [[1], [2]], "y": ["a", "b"]}), label="y")
    refuse("text", pl.DataFrame({"x": [1, 2], "y": ["a", "b"]}), label="y", task="regression")
    refuse("Pass label=", pl.DataFrame({"x": [1, 2]}))


@pytest.fixture
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)).astype(np.float32), np.arange(20) % 4


def test_array_files_agree_with_arrays_in_memory(tmp_path, embeddings) -> None:
    x, y = embeddings
    expected = data.load((x, y))
    assert (expected.kind, expected.num_classes) == ("vector", 4)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", embeddings=x, labels=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "c.safetensors")
    for spec in ("a.npz", "b.npz", f"x.npy:{tmp_path}/y.npy", "c.safetensors"):
        assert data.load(f"{tmp_path}/{spec}").fingerprint == expected.fingerprint
    assert data.load((torch.from_numpy(x), torch.from_numpy(y))).fingerprint == expected.fingerprint


def test_bad_arrays(tmp_path, embeddings) -> None:
    x, y = embeddings
    broken = x.copy()
    broken[[3, 7], 1] = np.nan
    refuse("NaN or infinite values in 2 of 20 rows", (broken, y))
    refuse("20 rows but 19 labels", (x, y[:-1]))
    refuse("'0' in every row", (x, np.zeros(20, dtype=int)))
    refuse("missing in 1 of 20 rows", (x, np.where(np.arange(20) == 4, np.nan, 1.0)))
    refuse("range from", (np.random.default_rng(0).normal(size=(4, 1, 3, 3)), [0, 1, 0, 1]))
    refuse("has shape (20,)", (x[:, 0], y))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object), y=y[:2])
    refuse("(a pickle), which could run code", f"{tmp_path}/objects.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    refuse("(a pickle), which could run code", f"{tmp_path}/objects.npy:{tmp_path}/objects.npy")
    (tmp_path / "disguised.npz").write_bytes(pickle.dumps({"x": 1}))
    refuse("(a pickle), which could run code", f"{tmp_path}/disguised.npz")
    np.savez(tmp_path / "other.npz", a=x)
    refuse("'x' and 'y'", f"{tmp_path}/other.npz")
    np.savez(tmp_path / "x.npz", x=x)
    refuse("but no labels", f"{tmp_path}/x.npz")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    refuse("cannot be read as safetensors", f"{tmp_path}/bad.safetensors")


def test_images_in_memory_channels_last_and_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    dataset = data.load((pixels, [0, 1] * 3))
    assert (dataset.kind, dataset.x.shape) == ("image", (6, 3, 5, 4))
    assert torch.equal((dataset.x[2, 1] * 255).round().byte(), torch.from_numpy(pixels[2, :, :, 1]))


def test_tokens_must_be_asked_for() -> None:
    x = np.array([[0, 5], [3, 1]])
    assert data.load((x, [0, 1])).kind == "vector"
    tokens = data.load((x, [0, 1]), kind="tokens")
    assert (tokens.kind, tokens.vocabulary, tokens.x.dtype) == ("tokens", 6, torch.int64)


@pytest.fixture
def folder(tmp_path) -> Path:
    from PIL import Image

    for label, level in (("dark", 40), ("light", 200)):
        for i in range(3):
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10 + i, 8), (level, level, level // 2)).save(path)
    return tmp_path / "images"


def test_folder_of_class_folders(folder: Path) -> None:
    dataset = data.load(f"{folder}+size=6")
    assert (dataset.x.shape, dataset.class_names) == ((6, 3, 6, 6), ("dark", "light"))
    assert dataset.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.allclose(dataset.x[4, :, 0, 0] * 255, torch.tensor([200.0, 200.0, 100.0]))


def test_folder_with_its_own_split(folder: Path, tmp_path) -> None:
    (tmp_path / "both").mkdir()
    for part in ("train", "test"):
        (tmp_path / "both" / part).symlink_to(folder)
    split = data.split(data.load(f"{tmp_path}/both"), seed=0, val=0)
    assert (len(split.train), len(split.val), len(split.test)) == (6, 0, 6)


def test_bad_folders(folder: Path) -> None:
    refuse("at least two classes", str(folder.parent))
    (folder / "dark" / "0.png").write_text("no image")
    refuse("cannot be read as an image", str(folder))
    (folder / "empty").mkdir()
    refuse("no folders of images", str(folder / "empty"))


def test_limit_draws_rows_by_seed() -> None:
    small = data.load("digits+limit=100")
    assert len(small) == 100
    assert small.fingerprint == data.load("digits+limit=100").fingerprint
    assert small.fingerprint != data.load("digits+limit=100+seed=1").fingerprint


def test_a_dataset_loads_as_itself_with_options() -> None:
    iris = data.load("iris")
    assert data.load(iris, noise=0.2).options.noise == 0.2
    assert data.load(data.load("iris+noise=0.2")).options.noise == 0.2


def test_take_follows_rows_everywhere() -> None:
    x = Table({"a": Column("number", np.arange(6.0))})
    fixed = {"train": torch.tensor([0, 1, 2]), "test": torch.tensor([3, 4, 5])}
    source = Dataset(
        "s", x, torch.arange(6), "classification", "table", None, {"id": torch.arange(6)}, fixed_split=fixed
    )
    part = source.take(torch.tensor([4, 1, 5]))
    assert part.x.columns["a"].values.tolist() == part.y.tolist() == part.extras["id"].tolist() == [4, 1, 5]
    assert {k: v.tolist() for k, v in part.fixed_split.items()} == {"train": [1], "test": [0, 2]}


def test_fingerprint_depends_on_contents_alone() -> None:
    iris = data.load("iris")
    same = data.load((iris.x.numpy(), np.array(iris.class_names)[iris.y]))
    assert same.fingerprint == iris.fingerprint
    changed = iris.x.clone()
    changed[70, 2] += 1e-3
    assert data.load((changed, iris.y)).fingerprint != iris.fingerprint


def test_fingerprint_and_split_are_the_same_in_another_process() -> None:
    specs = ("mixed", "shapes:n=30", "text:stdlib+limit=40+length=16", "mixture:n=90,classes=3+noise=0.3")
    program = (
        "from logitkit import data\n"
        f"for spec in {specs!r}:\n"
        "    d = data.load(spec)\n"
        "    print(d.fingerprint, data.split(d, 7).train.fingerprint)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    here = [(d.fingerprint, data.split(d, 7).train.fingerprint) for d in map(data.load, specs)]
    assert [tuple(line.split()) for line in printed.splitlines()] == here


def test_importing_data_is_light() -> None:
    program = (
        "import sys, logitkit.data\n"
        "heavy = {'pandas', 'polars', 'sklearn', 'PIL', 'datasets', 'openml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuse("pip install 'logitkit[hf]'", "hf:imdb")
    monkeypatch.setitem(sys.modules, "openml", None)
    refuse("pip install 'logitkit[openml]'", "openml:61")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").touch()
    refuse("pip install 'logitkit[images]'", str(tmp_path))
