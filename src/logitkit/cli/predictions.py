"""Predictions as a table on disk."""

from __future__ import annotations

import io
from pathlib import Path

from logitkit.engine import Predictor
from logitkit.engine.checkpoint import write_atomically


def write_predictions(model: Predictor, source: str, output: Path) -> int:
    """Write a line per row of `source`: `prediction`, and for classes `p_<class>` each. Returns the rows."""
    import polars as pl

    x = model.inputs(source)
    if model.shape.task == "regression":
        table = pl.DataFrame({"prediction": model.values(x).numpy()})
    else:
        probabilities = model.probabilities(x)
        names = model.names
        table = pl.DataFrame(
            {
                "prediction": [names[k] for k in probabilities.argmax(1).tolist()],
                **{f"p_{name}": probabilities[:, k].numpy() for k, name in enumerate(names)},
            }
        )
    buffer = io.BytesIO()
    if output.suffix == ".csv":
        table.write_csv(buffer)
    else:
        table.write_parquet(buffer)
    write_atomically(output, buffer.getvalue())
    return len(table)
