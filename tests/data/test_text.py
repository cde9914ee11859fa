"""Text as bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from logitkit import data
from logitkit.data.text import STDLIB, stdlib_sources
from logitkit.errors import InputError


def test_every_byte_is_predicted_from_the_one_before(tmp_path) -> None:
    text = bytes(range(65, 65 + 26))
    path = tmp_path / "abc"
    path.write_bytes(text)
    dataset = data.load(f"text:{path}+length=5")
    assert [bytes(row) for row in dataset.x.tolist()] == [text[i : i + 5] for i in range(0, 25, 5)]
    assert [bytes(row) for row in dataset.y.tolist()] == [text[i + 1 : i + 6] for i in range(0, 25, 5)]
    assert (dataset.task, dataset.num_classes, dataset.vocabulary) == ("sequence", 256, 256)


def test_windows_do_not_cross_files_and_say_which_they_are_from(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a" * 11)
    (tmp_path / "b.md").write_text("b" * 7)
    (tmp_path / "c.bin").write_text("c" * 50)
    dataset = data.load(f"text:{tmp_path}+length=3")
    assert dataset.extras["file"].tolist() == [0, 0, 0, 1, 1]
    assert all(len(row.unique()) == 1 for row in dataset.x)


def test_the_standard_library_by_module() -> None:
    sources = stdlib_sources()
    assert sources["json/decoder.py"] == Path(json.decoder.__file__).read_bytes()
    assert not any("/test/" in name or name.startswith("/") for name in sources)
    assert list(sources) == sorted(sources)
    held_out = stdlib_sources(only=["json"])
    assert held_out
    assert not set(held_out) & set(stdlib_sources(without=["json"]))
    assert {name.partition("/")[0].removesuffix(".py") for name in sources} == set(STDLIB)


def test_too_short_and_unknown(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(InputError, match="no text of more than 64 bytes"):
        data.load(f"text:{tmp_path}/a.txt")
    with pytest.raises(InputError, match="Did you mean 'json'"):
        stdlib_sources(only=["jsn"])


def test_prediction_uses_the_length_of_training(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("some text to continue " * 20)
    pre = data.Preprocessor().fit(data.load(f"text:{tmp_path}/a.txt+length=12"))
    assert pre.transform(data.load_unlabelled(f"text:{tmp_path}/a.txt", like=pre)).shape[1] == 12
    assert torch.equal(pre.transform(torch.ones(2, 12)), torch.ones(2, 12).long())
