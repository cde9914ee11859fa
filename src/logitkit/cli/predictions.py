"""Predictions as a table on disk."""

from __future__ import annotations

import io
from pathlib import Path

from logitkit.data.base import OF_TOKENS
from logitkit.engine import Predictor
from logitkit.engine.checkpoint import write_atomically


def write_predictions(model: Predictor, source: str, output: Path) -> int:
    """Write a line per row of `source`: `prediction`, and for classes `p_<class>` each; of several labels the
    five best, for retrieval the embedding, for sequences the tokens, for segmentation the class numbers of
    the pixels in reading order, for depth their depths, for one class how abnormal it is, for boxes scores,
    for a search the rows of the five best documents. Returns the rows."""
    import polars as pl

    x = model.inputs(source)
    if model.shape.task == "regression":
        table = pl.DataFrame({"prediction": model.values(x).numpy()})
    elif model.shape.task in OF_TOKENS:
        found = model.scores(x).argmax(1).view(x.shape).tolist()
        table = pl.DataFrame({"prediction": [" ".join(model.names[k] for k in row) for row in found]})
    elif model.shape.task == "segmentation":
        found = model.classes_of_pixels(x).flatten(1).tolist()
        table = pl.DataFrame({"prediction": [" ".join(map(str, row)) for row in found]})
    elif model.shape.task == "depth":
        depths = model.depths(x).flatten(1).tolist()
        table = pl.DataFrame({"prediction": [" ".join(f"{depth:g}" for depth in row) for row in depths]})
    elif model.shape.task == "oneclass":
        table = pl.DataFrame({"abnormality": model.abnormality(x).numpy()})
    elif model.shape.task == "search":
        table = pl.DataFrame({f"document_{k + 1}": rows for k, rows in enumerate(model.found(x).T.numpy())})
    elif model.shape.task == "boxes":
        table = pl.DataFrame({f"score_{k}": column for k, column in enumerate(model.scores(x).T.numpy())})
    elif model.shape.task == "retrieval":
        columns = model.embeddings(x).T.numpy()
        table = pl.DataFrame({f"embedding_{k}": column for k, column in enumerate(columns)})
    elif model.shape.task == "multilabel":
        best = model.scores(x).topk(min(5, model.shape.num_classes), 1).indices.tolist()
        table = pl.DataFrame([[model.names[k] for k in row] for row in best], orient="row")
        table.columns = [f"prediction_{place + 1}" for place in range(table.width)]
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
