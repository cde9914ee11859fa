"""From label values of any type to class numbers or regression targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from logitkit.data.base import Task
from logitkit.errors import InputError

FEW = 30
"""A whole-number label column of a table holds classes if it has at most this many different values."""


def read_labels(
    values: np.ndarray, where: str, task: Task | None = None, few: int | None = None
) -> tuple[Tensor, Task, tuple[str, ...] | None]:
    """`(y, task, class_names)` from (N,) label values.

    Strings and booleans are classes; whole numbers are classes if they take at most `few` different values
    (any number of them if None); floats are regression targets. `task` overrides this. Classes are numbered
    in sorted order.

    Raises `InputError`, naming `where`, if a label is missing, or if there is only one class.
    """
    if task == "depth":
        raise InputError(f"+task=depth needs the depth of every pixel, and {where} is one value per row.")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(f"{where} must hold one value per row, not an array of shape {values.shape}.")
    if len(values) == 0:
        raise InputError(f"{where} is empty.")
    missing = _missing(values)
    if missing.any():
        raise InputError(
            f"{where} is missing in {int(missing.sum())} of {len(values)} rows (the first is row"
            f" {int(missing.argmax())}): remove those rows, or use them with `predict`."
        )
    if values.dtype == object:
        values = values.astype(str)
    if task is None:
        task = _guess(values, few)
    if task == "regression":
        if values.dtype.kind not in "biuf":
            raise InputError(f"{where} holds text, which cannot be a regression target.")
        if not np.isfinite(values).all():
            raise InputError(f"{where} is infinite in {int((~np.isfinite(values)).sum())} rows.")
        return torch.from_numpy(values.astype(np.float32)), task, None
    levels, y = np.unique(values, return_inverse=True)
    if len(levels) < 2:
        raise InputError(f"{where} is {_shown(levels[0])!r} in every row: at least two classes are needed.")
    return torch.from_numpy(y.astype(np.int64)), task, tuple(_shown(level) for level in levels)


def _missing(values: np.ndarray) -> np.ndarray:
    if values.dtype == object:
        return np.array([value is None or value != value for value in values])
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)


def _guess(values: np.ndarray, few: int | None) -> Task:
    if values.dtype.kind == "f":
        return "regression"
    if values.dtype.kind in "iu" and few is not None and len(np.unique(values)) > few:
        return "regression"
    return "classification"


def _shown(level: object) -> str:
    if isinstance(level, np.bool_):
        return str(bool(level)).lower()
    return f"{level:.15g}" if isinstance(level, np.floating) else str(level)
