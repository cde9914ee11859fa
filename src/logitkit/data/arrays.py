"""Arrays: tensors in memory, and `.npz`, `.npy` and `.safetensors` files. A pickle is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitkit.data.base import Dataset, Kind, Task
from logitkit.data.labels import read_labels
from logitkit.errors import InputError

SUFFIXES = (".npz", ".npy", ".safetensors")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin", ".ckpt")
KEYS = (("x", "y"), ("X", "y"), ("embeddings", "labels"))
"""Names of inputs and labels in a file of several arrays, in the order they are looked for."""


def labelled(x: Any, y: Any, name: str, task: Task | None = None, kind: Kind | None = None) -> Dataset:
    """The data set of inputs `x` and labels `y` (arrays, tensors or lists).

    Whole-number labels are classes, floats regression targets, unless `task` says otherwise; those of depth
    are maps.
    """
    features, kind = read_inputs(x, name, kind)
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if len(values) != len(features):
        raise InputError(f"{name} has {len(features)} rows but {len(values)} labels.")
    if task == "depth":
        if values.dtype.kind not in "iuf":
            raise InputError(f"the depths of {name} are {values.dtype} values, where numbers are needed.")
        return Dataset(name, features, torch.from_numpy(values.astype(np.float32)), task, kind)
    labels, task, names = read_labels(values, f"the label of {name}", task)
    vocabulary = int(features.max()) + 1 if kind == "tokens" else None
    return Dataset(name, features, labels, task, kind, names, vocabulary=vocabulary)


def searched(x: Any, y: Any, documents: Any, name: str) -> Dataset:
    """The search of queries `x`, each answered by the row `y` of `documents` (documents, features)."""
    queries, kind = read_inputs(x, name)
    rows = np.asarray(y)
    answers, of_documents = read_inputs(documents, f"the documents of {name}")
    if of_documents != "vector" or len(answers) < 2:
        raise InputError(
            f"the documents of {name} have shape {tuple(answers.shape)}: at least 2 (documents, features) are"
            " needed."
        )
    if rows.shape != (len(queries),):
        raise InputError(f"{name} has {len(queries)} queries but labels of shape {rows.shape}.")
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(answers):
        raise InputError(f"the label of {name} must be the row of one of its {len(answers)} documents.")
    y = torch.from_numpy(rows.astype(np.int64))
    return Dataset(name, queries, y, "search", kind, documents=answers)


def read_inputs(x: Any, name: str, kind: Kind | None = None) -> tuple[Tensor, Kind]:
    """`(x, kind)`: (N, d) float32 vectors, (N, C, H, W) float32 images in [0, 1], or (N, L) int64 tokens.

    Images may also be (N, H, W), channels last, or whole numbers up to 255. Tokens must be asked for.
    Raises `InputError` for other shapes, no rows, NaN or infinity, and images out of range.
    """
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) and x.dtype != torch.bfloat16 else x
    array = array.float().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {array.dtype} values, where numbers are needed.")
    if len(array.shape) not in (2, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}: (rows, features) or (rows, channels, height, width) is needed."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
        raise InputError(f"{name} has NaN or infinite values in {bad} of {len(array)} rows.")
    if kind == "tokens":
        if array.ndim != 2 or array.dtype.kind not in "iu" or array.min() < 0:
            raise InputError(f"{name} must be (rows, length) whole numbers from 0 to be tokens.")
        return torch.from_numpy(array.astype(np.int64)), "tokens"
    if array.ndim == 2:
        return torch.from_numpy(array.astype(np.float32)), "vector"
    return _images(array, name), "image"


def _images(array: np.ndarray, name: str) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3, 4) and array.shape[-1] in (1, 3, 4):
        array = np.moveaxis(array, -1, 1)
    whole = array.dtype.kind in "iu"
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) / (255 if whole else 1)
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise InputError(
            f"the images of {name} range from {low:.3g} to {high:.3g}: [0, 1] (or 0 to 255) is needed."
        )
    return images


def read_file(path: Path, second: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """`(x, y)` of an array file; y is None if the file has none.

    second: the path of the labels of a `.npy` file, None for the others.
    """
    if path.suffix.lower() == ".npy":
        return _open(path), _open(Path(second)) if second else None
    arrays = _several(path)
    for x, y in KEYS:
        if x in arrays:
            return arrays[x], arrays.get(y)
    raise InputError(
        f"{path} holds {', '.join(arrays) or 'nothing'}:"
        " 'x' and 'y', or 'embeddings' and 'labels', are needed."
    )


def read_documents(path: Path) -> np.ndarray | None:
    """What the queries of a file of several arrays search through; None if it has no "documents"."""
    return None if path.suffix.lower() == ".npy" else _several(path).get("documents")


def _several(path: Path) -> dict[str, np.ndarray]:
    return _open_safetensors(path) if path.suffix.lower() == ".safetensors" else _open(path)


def _open(path: Path) -> Any:
    """The array of a `.npy` file, or a dictionary of the arrays of a `.npz` file."""
    exists(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return dict(loaded) if isinstance(loaded, Mapping) else loaded
    except (ValueError, OSError, EOFError) as error:
        if "pickle" in str(error).lower():
            raise InputError(
                f"{path} holds Python objects (a pickle), which could run code: save plain arrays."
            ) from None
        raise InputError(f"{path} cannot be read: {error}.") from error


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    exists(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}.") from error
    return {key: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for key, t in tensors.items()}


def exists(path: Path) -> None:
    """Raise `InputError` if there is no file at `path`."""
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
