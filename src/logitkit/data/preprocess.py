"""From raw examples to the tensors a network takes, with statistics of the training rows only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitkit.data.base import OF_NUMBERS, Column, Dataset, Kind, Table
from logitkit.errors import InputError, nearest

MAX_LEVELS = 255
"""A category keeps its most frequent values up to this many; the rest count as unseen."""


class Preprocessor:
    """Standardise, impute and encode.

    vector: each column to mean 0 and standard deviation 1 over the training rows; a constant column to 0.
    image:  the same per channel.
    table:  numbers and dates (in days) get the training median where missing, then are standardised, then
            a 0/1 column "was missing" follows if any training row missed it; a category becomes one 0/1
            column per training value, all 0 for a missing or unseen one, and a missing column likewise.
    tokens, boxes: unchanged.
    Regression targets, and depths where known, are standardised by `transform_target` and put back by
    `inverse_target`.

    >>> split = data.split(data.load("digits"), seed=0)
    >>> pre = Preprocessor().fit(split.train)
    >>> x = pre.transform(split.test)
    """

    kind: Kind
    input_shape: tuple[int, ...]
    vocabulary: int | None
    target_mean: float
    target_std: float
    _columns: list[dict[str, Any]]
    _tensors: dict[str, Tensor]

    def fit(self, train: Dataset) -> Preprocessor:
        """Take the statistics of the training rows. Returns self."""
        if len(train) == 0:
            raise InputError(f"{train.name} has no rows to fit the preprocessing to.")
        self.kind, self.vocabulary = train.kind, train.vocabulary
        self._columns, self._tensors = [], {}
        if isinstance(train.x, Table):
            self._fit_table(train.x)
        elif self.kind in ("tokens", "boxes"):
            self.input_shape = tuple(train.x.shape[1:])
        else:
            self.input_shape = tuple(train.x.shape[1:])
            over = (0, 2, 3) if self.kind == "image" else (0,)
            self._standardise(train.x.double(), over)
        self.target_mean, self.target_std = 0.0, 1.0
        if train.task in OF_NUMBERS:
            y = train.y[~train.y.isnan()].double()
            self.target_mean = float(y.mean())
            self.target_std = float(y.std(correction=0)) or 1.0
        return self

    def transform(self, data: Dataset | Tensor | Table) -> Tensor:
        """(N, *input_shape) float32, or int64 for tokens.

        Raises `InputError` when rows have another shape than the training rows, or when a table lacks a
        column; columns that training did not see are ignored.
        """
        x = data.x if isinstance(data, Dataset) else data
        if isinstance(x, Table):
            if self.kind != "table":
                raise InputError(f"the model was trained on {_PLURAL[self.kind]}, not on a table.")
            return self._transform_table(x)
        if self.kind == "table":
            raise InputError("the model was trained on a table with named columns, not on a tensor.")
        if tuple(x.shape[1:]) != self.input_shape:
            raise InputError(
                f"the model was trained on {_PLURAL[self.kind]} of shape {self.input_shape},"
                f" not {tuple(x.shape[1:])}."
            )
        if self.kind == "tokens":
            return x.long()
        if self.kind == "boxes":
            return x.float()
        return ((x.double() - self._tensors["mean"]) * self._tensors["scale"]).float()

    def transform_target(self, y: Tensor) -> Tensor:
        """Regression targets in units of the training standard deviation, float32; NaN stays."""
        return ((y.double() - self.target_mean) / self.target_std).float()

    def inverse_target(self, y: Tensor) -> Tensor:
        """Standardised predictions back in the units of the target, float32."""
        return (y.double() * self.target_std + self.target_mean).float()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What `from_state` needs: a JSON-able dictionary, and tensors for safetensors."""
        meta = {
            "kind": self.kind,
            "input_shape": list(self.input_shape),
            "vocabulary": self.vocabulary,
            "target_mean": self.target_mean,
            "target_std": self.target_std,
            "columns": self._columns,
        }
        return meta, dict(self._tensors)

    @classmethod
    def from_state(cls, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Preprocessor:
        """The preprocessor whose `state()` this is; it transforms bit for bit as that one did."""
        new = cls()
        new.kind, new.vocabulary = meta["kind"], meta["vocabulary"]
        new.input_shape = tuple(meta["input_shape"])
        new.target_mean, new.target_std = meta["target_mean"], meta["target_std"]
        new._columns, new._tensors = meta["columns"], dict(tensors)
        return new

    def _standardise(self, x: Tensor, over: tuple[int, ...]) -> None:
        mean, std = x.mean(over, keepdim=True)[0], x.std(over, correction=0, keepdim=True)[0]
        constant = x.amax(over, keepdim=True)[0] == x.amin(over, keepdim=True)[0]
        self._tensors |= {"mean": mean, "scale": torch.where(constant, 0.0, 1 / std)}

    def _fit_table(self, table: Table) -> None:
        medians, filled = [], []
        for name, column in table.columns.items():
            known = ~column.missing
            about = {"name": name, "kind": column.kind, "missing": bool((~known).any())}
            if column.kind == "category":
                counts = np.bincount(column.values[known], minlength=len(column.levels))
                common = np.argsort(-counts, kind="stable")[:MAX_LEVELS]
                about["levels"] = [column.levels[i] for i in sorted(common) if counts[i] > 0]
            else:
                median = float(np.median(column.values[known])) if known.any() else 0.0
                medians.append(median)
                filled.append(np.where(known, column.values, median))
            self._columns.append(about)
        values = torch.from_numpy(np.stack(filled, axis=1)) if filled else torch.zeros(len(table), 0).double()
        self._tensors["median"] = torch.tensor(medians, dtype=torch.float64)
        if filled:
            self._standardise(values, (0,))
        width = sum(len(c.get("levels", [0])) + c["missing"] for c in self._columns)
        self.input_shape = (width,)

    def _transform_table(self, table: Table) -> Tensor:
        blocks: list[np.ndarray] = []
        numeric = 0
        for about in self._columns:
            column = _matching(table, about["name"], about["kind"])
            missing = column.missing
            if about["kind"] == "category":
                seen = {level: position for position, level in enumerate(about["levels"])}
                lookup = np.array([*(seen.get(level, -1) for level in column.levels), -1], dtype=np.int64)
                blocks.append(lookup[column.values][:, None] == np.arange(len(seen)))
            else:
                median, mean, scale = (float(self._tensors[k][numeric]) for k in ("median", "mean", "scale"))
                blocks.append(((np.where(missing, median, column.values) - mean) * scale)[:, None])
                numeric += 1
            if about["missing"]:
                blocks.append(missing[:, None])
        return torch.from_numpy(np.concatenate([b.astype(np.float32) for b in blocks], axis=1))


_PLURAL = {"vector": "vectors", "image": "images", "tokens": "tokens", "table": "a table", "boxes": "boxes"}


def _matching(table: Table, name: str, kind: str) -> Column:
    """The column of that name, as the kind it had in training."""
    if name not in table.columns:
        raise InputError(
            f"the table has no column {name!r}, which the model needs.{nearest(name, table.columns)}"
        )
    column = table.columns[name]
    if column.kind == kind:
        return column
    if column.missing.all():
        empty = np.full(len(column.values), -1 if kind == "category" else math.nan)
        return Column(kind, empty.astype(np.int64) if kind == "category" else empty)  # type: ignore[arg-type]
    if kind == "category" and column.kind == "number":
        levels, codes = np.unique(column.values[~column.missing], return_inverse=True)
        values = np.full(len(column.values), -1, dtype=np.int64)
        values[~column.missing] = codes
        return Column("category", values, tuple(f"{level:.15g}" for level in levels))
    raise InputError(f"column {name!r} was a {kind} in training and is a {column.kind} here.")
