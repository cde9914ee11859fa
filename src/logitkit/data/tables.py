"""Tables: CSV and Parquet files, polars and pandas frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitkit.data.base import Column, Dataset, Table, Task
from logitkit.data.labels import FEW, read_labels
from logitkit.errors import InputError, MissingExtra, nearest

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None"]
"""What a CSV cell says when its value is missing."""


def read_frame(path: Path) -> pl.DataFrame:
    """A CSV (commas, semicolons or tabs, by its header) or Parquet file as a polars frame."""
    import polars as pl

    try:
        if path.suffix.lower() == ".parquet":
            frame = pl.read_parquet(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                header = file.readline()
            separator = max(",;\t", key=header.count)
            frame = pl.read_csv(
                path, separator=separator, null_values=MISSING, infer_schema_length=None, try_parse_dates=True
            )
    except pl.exceptions.NoDataError:
        raise InputError(f"{path} is empty.") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a table: {' '.join(str(error).split())}.") from error
    if frame.height == 0:
        raise InputError(f"{path} has no rows.")
    return frame


def as_frame(frame: Any) -> pl.DataFrame | None:
    """`frame` as a polars frame if it is a polars or pandas one, else None."""
    library = type(frame).__module__.split(".")[0]
    if library not in ("polars", "pandas") or type(frame).__name__ not in ("DataFrame", "LazyFrame"):
        return None
    import polars as pl

    if library == "pandas":
        try:
            return pl.from_pandas(frame)
        except ImportError:
            raise MissingExtra("pyarrow", "hf", "reading a pandas frame") from None
    return frame.collect() if isinstance(frame, pl.LazyFrame) else frame


def labelled(frame: pl.DataFrame, label: str | None, task: Task | None, name: str) -> Dataset:
    """The data set whose label is column `label` of `frame` and whose features are all others."""
    if label is None:
        raise InputError(
            f"which column of {name} is the label? Write {name}:LABEL; columns: {', '.join(frame.columns)}."
        )
    if label not in frame.columns:
        raise InputError(f"{name} has no column {label!r}.{nearest(label, frame.columns)}")
    if frame.width == 1:
        raise InputError(f"{name} has no column besides the label {label!r}.")
    values = _label_values(frame[label])
    y, task, names = read_labels(values, f"the label column {label!r} of {name}", task, few=FEW)
    return Dataset(name, as_table(frame.drop(label), name), y, task, "table", names)


def _label_values(series: pl.Series) -> np.ndarray:
    """(N,) label values; objects with None where missing, if any are."""
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    elif series.dtype.is_decimal():
        series = series.cast(pl.Float64)
    elif series.dtype.is_temporal() or series.dtype.is_nested():
        raise InputError(f"the label column {series.name!r} holds {series.dtype}, not classes or numbers.")
    if series.null_count() or series.dtype == pl.String:
        return np.array(series.to_list(), dtype=object)
    return series.to_numpy()


def as_table(frame: pl.DataFrame, name: str) -> Table:
    """The columns of `frame` as numbers (booleans are 0 and 1), dates (in days) and categories."""
    return Table({column: _column(frame[column], name) for column in frame.columns})


def _column(series: pl.Series, name: str) -> Column:
    import polars as pl

    dtype = series.dtype
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        days = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 86_400e6
        return Column("date", days.to_numpy().astype(np.float64))
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        words = np.array(series.cast(pl.String).to_list(), dtype=object)
        known = np.array([word is not None for word in words])
        codes = np.full(len(words), -1, dtype=np.int64)
        levels, codes[known] = np.unique(words[known].astype(str), return_inverse=True)
        return Column("category", codes, tuple(levels.tolist()))
    if dtype == pl.Duration:
        series = series.dt.total_microseconds() / 86_400e6
    elif dtype == pl.Time:
        series = series.cast(pl.Int64) / 86_400e9
    elif not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise InputError(
            f"column {series.name!r} of {name} holds {dtype}, which is neither numbers, text nor dates."
        )
    values = series.cast(pl.Float64).to_numpy().astype(np.float64)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise InputError(f"column {series.name!r} of {name} is infinite in {infinite} rows.")
    return Column("number", values)
