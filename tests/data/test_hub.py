"""Hugging Face data sets from disk, and OpenML through its client."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from logitkit import data
from logitkit.errors import InputError

datasets = pytest.importorskip("datasets")


def saved(tmp_path, columns: dict, names: list[str] | None = None) -> str:
    table = datasets.Dataset.from_dict(columns)
    if names:
        table = table.cast_column("label", datasets.ClassLabel(names=names))
    table.save_to_disk(tmp_path / "set")
    return f"hf:{tmp_path}/set"


def test_a_table_with_class_labels(tmp_path) -> None:
    spec = saved(tmp_path, {"a": [1.0, 2.0, 3.0], "b": ["u", "v", "u"], "label": [2, 0, 2]}, ["x", "y", "z"])
    dataset = data.load(spec)
    assert (dataset.kind, dataset.class_names, dataset.y.tolist()) == ("table", ("x", "z"), [1, 0, 1])
    assert data.load(f"{spec}:b").class_names == ("u", "v")
    with pytest.raises(InputError, match=r"no column 'labels'\. Did you mean 'label'"):
        data.load(f"{spec}:labels")


def test_embeddings(tmp_path) -> None:
    dataset = data.load(saved(tmp_path, {"e": [[1.0, 2.0], [3.0, 4.0]], "label": [0.5, 1.5]}))
    assert (dataset.kind, dataset.task) == ("vector", "regression")
    assert dataset.x.tolist() == [[1, 2], [3, 4]]


def test_text_becomes_bytes(tmp_path) -> None:
    dataset = data.load(
        saved(tmp_path, {"text": ["hello", "é", ""], "label": [0, 1, 0]}, ["a", "b"]) + "+length=4"
    )
    assert (dataset.kind, dataset.vocabulary) == ("tokens", 257)
    decoded = [bytes(b - 1 for b in row if b) for row in dataset.x.tolist()]
    assert decoded == [b"hell", "é".encode(), b""]


def test_images(tmp_path) -> None:
    from PIL import Image

    pictures = [Image.new("L", (9, 9), level) for level in (0, 51, 255)]
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1]}, features=columns)
    table.save_to_disk(tmp_path / "set")
    dataset = data.load(f"hf:{tmp_path}/set+size=4")
    assert dataset.x.shape == (3, 1, 4, 4)
    assert torch.allclose(dataset.x[:, 0, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


def test_its_own_split_is_kept_and_hidden_labels_left_out(tmp_path) -> None:
    def part(rows: int, first: int, labels: list[int] | None = None):
        columns = {
            "e": [[float(first + i)] for i in range(rows)],
            "label": labels or [i % 2 for i in range(rows)],
        }
        return datasets.Dataset.from_dict(columns).cast_column("label", datasets.ClassLabel(names=["a", "b"]))

    parts = {"train": part(20, 0), "validation": part(6, 100), "test": part(8, 200)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all")
    split = data.split(data.load(f"hf:{tmp_path}/all"), 0)
    assert [p.x.min().item() for p in (split.train, split.val, split.test)] == [0, 100, 200]
    assert [len(p) for p in (split.train, split.val, split.test)] == [20, 6, 8]

    parts["test"] = part(8, 200, labels=[-1] * 8)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "hidden")
    split = data.split(data.load(f"hf:{tmp_path}/hidden"), 0)
    assert split.test.x.max() < 100
    assert split.val.x.min() == 100


def test_what_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match="which column"):
        data.load(saved(tmp_path, {"a": [1.0, 2.0], "b": [0, 1]}))
    with pytest.raises(InputError, match="cannot be loaded"):
        data.load(f"hf:{tmp_path}/missing")


def test_openml_uses_its_target(monkeypatch) -> None:
    openml = pytest.importorskip("openml")
    frame = pd.DataFrame(
        {"a": [1.0, np.nan, 3.0], "c": pd.Categorical(["u", "v", None]), "target": ["p", "q", "p"]}
    )

    class Stored:
        default_target_attribute = "target"

        def get_data(self):
            return frame, None, [False, True, True], list(frame)

    asked: list[int] = []
    monkeypatch.setattr(openml.datasets, "get_dataset", lambda number, **_: asked.append(number) or Stored())
    dataset = data.load("openml:61")
    assert asked == [61]
    assert dataset.y.tolist() == [0, 1, 0]
    assert np.isnan(dataset.x.columns["a"].values).tolist() == [False, True, False]
    assert dataset.x.columns["c"].values.tolist() == [0, 1, -1]


def test_openml_refusal_is_passed_on(monkeypatch) -> None:
    openml = pytest.importorskip("openml")

    def refuse(number: int, **_: object) -> None:
        raise openml.exceptions.OpenMLServerException("Unknown dataset", 111)

    monkeypatch.setattr(openml.datasets, "get_dataset", refuse)
    with pytest.raises(InputError, match=r"openml:9 cannot be loaded: .*Unknown dataset"):
        data.load("openml:9")
