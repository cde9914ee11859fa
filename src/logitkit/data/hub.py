"""Data sets by name: the Hugging Face hub and OpenML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitkit.data import arrays, folder, tables, text
from logitkit.data.base import Dataset, Task
from logitkit.errors import InputError, MissingExtra, nearest

_PARTS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "test": "test"}


def hugging_face(
    name: str,
    label: str | None = None,
    task: Task | None = None,
    size: int = folder.SIZE,
    length: int = text.LENGTH,
) -> Dataset:
    """A Hugging Face data set, by hub name or as a folder written by `save_to_disk`.

    label: the label column; by default "label", "labels" or the only column of class labels. What remains
    decides the kind: one image column gives images (size, size), one column of number lists vectors, one
    text column tokens (bytes + 1, 0 after the end), anything else a table. Its own train, validation and
    test splits become the fixed split; an unlabelled test split is left out.
    """
    parts = _parts(name)
    features = next(iter(parts.values())).features
    label = label or _label(features, name)
    if label not in features:
        raise InputError(f"hf:{name} has no column {label!r}.{nearest(label, features)}")
    from datasets import ClassLabel, concatenate_datasets

    classes = features[label].names if isinstance(features[label], ClassLabel) else None
    if classes:
        task = task or "classification"
        parts = {part: data for part, data in parts.items() if part == "train" or min(data[label]) >= 0}
    dataset = _convert(concatenate_datasets(list(parts.values())), f"hf:{name}", label, task, size, length)
    if classes and dataset.class_names:
        dataset = replace(dataset, class_names=tuple(classes[int(number)] for number in dataset.class_names))
    if len(parts) > 1:
        ends = np.cumsum([len(data) for data in parts.values()])
        rows = [torch.arange(end - len(data), end) for end, data in zip(ends, parts.values(), strict=True)]
        dataset = replace(dataset, fixed_split=dict(zip(parts, rows, strict=True)))
    return dataset


def _parts(name: str) -> dict[str, Any]:
    """The splits by "train", "val" and "test"; a data set without splits, or without "train", is "train"."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "hf", f"hf:{name}") from None
    try:
        local = Path(name).is_dir() and any(Path(name).glob("*.json"))
        loaded = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except (OSError, ValueError) as error:
        raise InputError(f"hf:{name} cannot be loaded: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        return {"train": loaded}
    if "train" not in loaded:
        return {"train": datasets.concatenate_datasets(list(loaded.values()))}
    return {_PARTS[part]: data for part, data in loaded.items() if part in _PARTS}


def _label(features: Any, name: str) -> str:
    from datasets import ClassLabel

    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    for column in ("label", "labels", *(classes if len(classes) == 1 else [])):
        if column in features:
            return str(column)
    raise InputError(
        f"which column of hf:{name} is the label? Write hf:{name}:LABEL; columns: {', '.join(features)}."
    )


def _convert(data: Any, name: str, label: str, task: Task | None, size: int, length: int) -> Dataset:
    from datasets import Image, List, Value

    inputs = {column: feature for column, feature in data.features.items() if column != label}
    column, feature = next(iter(inputs.items())) if len(inputs) == 1 else ("", None)
    y = np.asarray(data[label])
    if isinstance(feature, Image):
        return arrays.labelled(folder.resize(data[column], size), y, name, task)
    if isinstance(feature, List):
        return arrays.labelled(np.asarray(data[column]), y, name, task)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        dataset = arrays.labelled(text.encode(data[column], length), y, name, task, kind="tokens")
        return replace(dataset, vocabulary=257)
    return tables.labelled(data.to_polars(), label, task, name)


def openml(number: str, label: str | None = None, task: Task | None = None) -> Dataset:
    """The OpenML data set with id `number`, as a table; by default with its own target as the label."""
    try:
        import openml as client
    except ImportError:
        raise MissingExtra("openml", "openml", f"openml:{number}") from None
    if not number.isdigit():
        raise InputError(f"openml:{number} must name a data set by its number, e.g. openml:61.")
    try:
        data = client.datasets.get_dataset(int(number), download_data=True, download_qualities=False)
        frame, *_ = data.get_data()
    except (client.exceptions.PyOpenMLError, OSError) as error:
        raise InputError(f"openml:{number} cannot be loaded: {error}.") from error
    polars_frame = tables.as_frame(frame)
    assert polars_frame is not None
    return tables.labelled(polars_frame, label or data.default_target_attribute, task, f"openml:{number}")
