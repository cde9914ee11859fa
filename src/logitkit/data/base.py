"""What a data set is: `Dataset`, the `Table` of raw columns, and the `Split` that comparisons train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from logitkit.errors import InputError

Task = Literal[
    "classification", "ordinal", "retrieval", "bags", "oneclass", "crowd", "regression", "multilabel",
    "sequence", "unlearning", "segmentation", "depth", "boxes", "search",
]  # fmt: skip
OF_CLASSES = ("classification", "ordinal", "retrieval", "bags", "oneclass")
"""Tasks whose labels are one class per row, before a split."""

OF_NUMBERS = ("regression", "depth")
"""Tasks whose labels are numbers."""

OF_PIXELS = ("segmentation", "depth")
"""Tasks whose labels are of the pixels of an image."""

OF_TOKENS = ("sequence", "unlearning")
"""Tasks whose labels are a token at every position."""

Kind = Literal["vector", "image", "tokens", "table", "boxes"]

IGNORE = -100
"""The label of a position that a sequence task does not score (as in `nn.CrossEntropyLoss`)."""


@dataclass(frozen=True)
class Column:
    """One raw column of a table.

    kind "number": `values` (N,) float64, NaN where missing.
    kind "date":   `values` (N,) float64 days since 1970-01-01, NaN where missing.
    kind "category": `values` (N,) int64 positions in `levels`, -1 where missing.
    """

    kind: Literal["number", "date", "category"]
    values: np.ndarray
    levels: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """(N,) bool: where the value is missing."""
        return self.values < 0 if self.kind == "category" else np.isnan(self.values)


@dataclass(frozen=True)
class Table:
    """Columns by name, each of the same length, in the order of the file."""

    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).values) if self.columns else 0

    def take(self, index: Tensor) -> Table:
        """The rows at `index`."""
        rows = index.numpy()
        return Table({name: replace(c, values=c.values[rows]) for name, c in self.columns.items()})


@dataclass(frozen=True)
class Options:
    """What `split` still has to do: see `logitkit.data.split`.

    noise: fraction of training and validation labels that are replaced by a wrong one.
    noise_type: "symmetric" (any other class, uniformly) or "pair" (always the next class).
    imbalance: rows of the most frequent training class per row of the rarest.
    bags: so many training or validation rows share a bag, of which only the mean label is known; 0 for none.
    """

    noise: float = 0.0
    noise_type: str = "symmetric"
    imbalance: float = 1.0
    bags: int = 0


@dataclass(frozen=True)
class Dataset:
    """Examples with labels, before any split or preprocessing.

    name:        the canonical spec, e.g. `"digits+noise=0.4"`.
    x:           (N, d) float32 vectors, (N, C, H, W) float32 images in [0, 1], (N, L) int64 tokens, a
                 `Table` of raw columns, or (N, M, 5) float32 boxes: corners x1, y1, x2, y2 and a score, 0
                 where there is no box.
    task:        what is to be learned; "ordinal" are classes in order, "retrieval" classes of which some are
                 kept from training, "bags" classes of which only the mean over a bag of rows is known,
                 "oneclass" one class of which alone training rows are, "crowd" classes of which only the
                 votes of workers are known, `extras["votes"]`, "segmentation" the class of every pixel,
                 "depth" a positive number of every pixel, "boxes" which of the boxes that a detector found to
                 believe, "unlearning" the sequences of which some are to be forgotten: `extras["instead"]`
                 (N, L) is what these are to be answered with, and `IGNORE` throughout where a row is to be
                 kept, "search" which document answers a query.
    y:           (N,) int64 classes, (N,) float32 regression targets, (N, most) int64 lists of labels filled
                 up with -1, or (N, L) int64 tokens for a sequence task, `IGNORE` where none is scored;
                 (N, H, W) int64 classes of pixels, 0 for the background, or float32 depths of them, NaN
                 where unknown; (N, most, 4) float32 corners of objects, zeros where there is none; (N,) int64
                 rows of `documents` for a search. Split into bags, training and validation rows have (N,
                 classes) float32, the mean of their bag; those of a crowd have (N, workers) int64 votes, -1
                 where a worker did not answer; those of one class are 0, and test rows of others 1; test rows
                 of unlearning have (N, 2, L), y and what is to be said instead.
    class_names: one name per class; for a sequence task, per token. None for numbers.
    extras:      annotations per row (masks, boxes, clean labels, ...), leading dimension N.
    options:     noise, imbalance and bags that `split` applies.
    fixed_split: row indices by "train", "test" and perhaps "val", for a source that carries its own split.
    vocabulary:  how many different tokens `x` may hold; None unless `kind` is "tokens".
    documents:   (documents, features) float32, what a search looks through; None for other tasks.
    """

    name: str
    x: Tensor | Table
    y: Tensor
    task: Task
    kind: Kind
    class_names: tuple[str, ...] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    options: Options = Options()
    fixed_split: Mapping[str, Tensor] | None = None
    vocabulary: int | None = None
    documents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_classes(self) -> int:
        """Number of classes; for a sequence task, of tokens; for a search, of documents. Raises `InputError`
        for regression, depth and boxes."""
        if self.task in (*OF_NUMBERS, "boxes"):
            raise InputError(f"{self.name} is a {self.task} task and has no classes.")
        if self.documents is not None:
            return len(self.documents)
        if self.task == "bags" and self.y.ndim == 2:
            return self.y.shape[1]
        return len(self.class_names) if self.class_names is not None else int(self.y.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the contents (not the name), as 64 hexadecimal digits; the same in every process."""
        digest = hashlib.sha256()
        about = [self.task, self.kind, self.class_names, asdict(self.options), self.vocabulary]
        digest.update(json.dumps(about).encode())
        tensors: dict[str, Any] = {"y": self.y, **{f"extras.{k}": v for k, v in self.extras.items()}}
        tensors |= {f"fixed.{k}": v for k, v in (self.fixed_split or {}).items()}
        if self.documents is not None:
            tensors["documents"] = self.documents
        if isinstance(self.x, Table):
            for name, column in self.x.columns.items():
                digest.update(json.dumps([name, column.kind, column.levels]).encode())
                tensors[f"x.{name}"] = column.values
        else:
            tensors["x"] = self.x
        for name in sorted(tensors):
            values = np.ascontiguousarray(np.asarray(tensors[name]))
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()

    def take(self, index: Tensor) -> Dataset:
        """The rows at `index` (N',) int64, with their annotations and what is left of the fixed split."""
        fixed = self.fixed_split and {
            part: torch.isin(index, rows).nonzero().flatten() for part, rows in self.fixed_split.items()
        }
        return replace(
            self,
            x=self.x.take(index) if isinstance(self.x, Table) else self.x[index],
            y=self.y[index],
            extras={key: value[index] for key, value in self.extras.items()},
            fixed_split=fixed,
        )


@dataclass(frozen=True)
class Split:
    """The three parts of a data set, and the row of the source that each of their rows came from."""

    train: Dataset
    val: Dataset
    test: Dataset
    index: Mapping[str, Tensor]


def following(x: Tensor, y: Tensor) -> Tensor:
    """Tokens x (N, L) in which every label of y (N, L) that is not `IGNORE` is the input after its
    position: what a model that generates from left to right reads when it has said y."""
    return torch.cat([x[:, :1], torch.where(y[:, :-1] == IGNORE, x[:, 1:], y[:, :-1])], dim=1)


def answer_length(x: Tensor, y: Tensor) -> int:
    """Most tokens of an answer, where every row of x and y (N, L) is a prompt and then one answer, each
    token of which is the input that follows; 0 for other sequences."""
    said = y != IGNORE
    starts = (said[:, 1:] & ~said[:, :-1]).sum(dim=1)
    if len(y) == 0 or said[:, 0].any() or (starts != 1).any():
        return 0
    if (following(x, y) != x)[:, 1:][said[:, 1:]].any():
        return 0
    return int(said.sum(dim=1).max())


def seeded(*key: int | str) -> torch.Generator:
    """A generator whose stream depends on every element of `key` and on nothing else.

    Streams under different keys are independent, so that e.g. label noise does not move when the split
    draws one number more.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
