"""`load`: any spec or Python object to a `Dataset`; `load_unlabelled`: the same without labels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitkit.data import arrays, folder, hub, tables, text
from logitkit.data.base import OF_CLASSES, OF_PIXELS, Dataset, Kind, Options, Table, seeded
from logitkit.data.bundled import BUNDLED, bundled
from logitkit.data.generators import GENERATORS, generate
from logitkit.data.preprocess import Preprocessor
from logitkit.data.spec import Spec, parse
from logitkit.errors import InputError, nearest

SCHEMES = ("hf", "openml", "text")
SOURCES = (*BUNDLED, *GENERATORS, *SCHEMES)
"""What a spec that is not a path may start with."""

_FILE = re.compile(
    rf"(?P<path>.+?(?:{'|'.join(map(re.escape, (*tables.SUFFIXES, *arrays.SUFFIXES, *arrays.PICKLES)))}))"
    r"(?::(?P<label>.*))?",
    re.IGNORECASE | re.DOTALL,
)


def load(source: Any, *, label: str | None = None, kind: Kind | None = None, **options: object) -> Dataset:
    """The data set that `source` says.

    source is one of
      "digits", "iris", "wine", "breast_cancer", "diabetes"   scikit-learn's bundled sets
      "mixture:classes=20,dim=32"              a generator of `logitkit.data.generators` and its arguments
      "FILE.csv:LABEL", ".tsv", ".parquet"     a table and its label column
      "FILE.npz", "FILE.safetensors"           arrays x and y, or embeddings and labels; with documents a
                                               search, y being rows of them
      "X.npy:Y.npy"                            two arrays
      "FOLDER"                                 images in one folder per class
      "hf:NAME[:LABEL]"                        a Hugging Face data set, or a folder it was saved to
      "openml:ID[:LABEL]"                      an OpenML data set by number
      "text:stdlib", "text:PATH"               bytes, each predicted from those before it
      a `Dataset`, a pair (x, y) of arrays, or a polars or pandas frame with `label="column"`.

    options, also written into a spec as `+option=value`:
      noise       fraction of training and validation labels (of sequences: target tokens) made wrong;
                  noise_type "symmetric" or "pair"
      imbalance   training rows of the largest class per row of the smallest
      bags        so many training rows share a bag, of which only the mean label is known; validation alike
      limit       keep this many rows, drawn at random
      seed        of the generator and of the rows drawn by `limit`; default 0
      task        "classification" or "regression", where the label's type would say otherwise; "ordinal" for
                  classes in order; "retrieval" to find rows of classes that training has not seen;
                  "oneclass" to learn the most frequent class alone and find rows of the others; "crowd" to
                  learn classes from `extras["votes"]` alone, as those of `ratings`;
                  "segmentation" of images with `extras["segmentation"]`, as those of `scenes`, to find the
                  pixels of classes that training has not seen from a few labelled images; "depth" of images
                  with `extras["depth"]`, as those of `scenes`, or with y (rows, height, width): the depth of
                  every pixel, NaN where it is unknown
      size        pixels that the images of a folder or a Hugging Face set are resized to; default 32
      length      bytes per row of text; default 64

    label: the label column of a frame. kind: "tokens" if whole-number (N, L) arrays are tokens, not vectors.

    Raises `InputError`, in one sentence, for everything that cannot be used.
    """
    if isinstance(source, str | Path):
        spec = parse(str(source), **options)
        dataset = _from_spec(spec)
    else:
        spec = parse("data", **options)
        dataset = _from_object(source, spec, label, kind)
        spec = replace(spec, body=dataset.name)
    _check_options(spec, dataset)
    task = spec.options.get("task")
    if task in OF_CLASSES:
        dataset = replace(dataset, task=task)
    if task == "crowd":
        dataset = replace(dataset, task="crowd")
    if task == "segmentation":
        dataset = of_pixels(dataset)
    if task == "depth" and dataset.task != "depth":
        dataset = replace(dataset, y=dataset.extras["depth"], task="depth", class_names=None, extras={})
    if dataset.task == "depth":
        _check_depth(dataset)
    if "bags" in spec.options:
        dataset = replace(dataset, task="bags")
    if "limit" in spec.options and spec.options["limit"] < len(dataset):
        order = torch.randperm(len(dataset), generator=seeded(spec.options.get("seed", 0), "limit"))
        dataset = dataset.take(order[: spec.options["limit"]].sort().values)
    pending = spec.pending if spec.pending != Options() else dataset.options
    return replace(dataset, name=replace(spec, body=dataset.name).name, options=pending)


def of_pixels(dataset: Dataset) -> Dataset:
    """The same images with the class of every pixel, 0 for the background, in the place of their own."""
    names = dataset.class_names and ("background", *dataset.class_names)
    y = dataset.extras["segmentation"].long()
    return replace(dataset, y=y, task="segmentation", class_names=names, extras={})


def _check_depth(dataset: Dataset) -> None:
    """Raise `InputError` for what are not images with depths of their pixels."""
    x, y = dataset.x, dataset.y
    if dataset.kind != "image" or not isinstance(x, Tensor) or y.shape != (len(x), *x.shape[2:]):
        shape = tuple(x.shape) if isinstance(x, Tensor) else "a table"
        raise InputError(
            f"{dataset.name} has inputs {shape} and labels {tuple(y.shape)}: depth needs images (rows,"
            " channels, height, width) and labels (rows, height, width)."
        )
    known = ~y.isnan()
    if not (y.isfinite() & (y > 0))[known].all():
        raise InputError(f"the depths of {dataset.name} must be positive and finite, NaN where unknown.")
    blind = ~known.flatten(1).any(dim=1)
    if blind.any():
        raise InputError(
            f"{dataset.name} has {int(blind.sum())} images without a known depth: leave them out."
        )


def load_unlabelled(source: Any, like: Preprocessor) -> Tensor | Table:
    """Inputs to predict for, of the kind that `like` was fitted on; `like.transform` takes them.

    source is what `load` takes, where labels may be absent: a table without the label column, arrays
    without y, a tensor alone, or a folder of images with or without folders inside (in path order).
    """
    if isinstance(source, str | Path):
        spec = parse(str(source))
        match = _FILE.fullmatch(spec.body)
        if match and not _known(spec.body):
            path = _readable(match)
            if path.suffix.lower() in tables.SUFFIXES:
                return tables.as_table(tables.read_frame(path), str(path))
            return arrays.read_inputs(arrays.read_file(path, None)[0], str(path), _token_kind(like))[0]
        if Path(spec.body).is_dir() and not _known(spec.body):
            paths = folder.image_paths(Path(spec.body))
            if like.kind != "image" or not paths:
                raise InputError(f"the folder {spec.body} holds no images to predict for.")
            return folder.read_images(paths, like.input_shape[-1], channels=like.input_shape[0])
        return _from_spec(spec, length=like.input_shape[0]).x
    if isinstance(source, Dataset):
        return source.x
    frame = tables.as_frame(source)
    if frame is not None:
        return tables.as_table(frame, "the frame")
    if like.kind == "boxes":
        return torch.as_tensor(source)
    return arrays.read_inputs(source, "the array", _token_kind(like))[0]


def _token_kind(like: Preprocessor) -> Kind | None:
    return "tokens" if like.kind == "tokens" else None


def _known(body: str) -> bool:
    return body.partition(":")[0] in SOURCES


def _from_spec(spec: Spec, length: int | None = None) -> Dataset:
    head, _, rest = spec.body.partition(":")
    task = spec.reads
    size = spec.options.get("size", folder.SIZE)
    length = spec.options.get("length", length or text.LENGTH)
    if head in GENERATORS:
        return generate(head, rest, spec.options.get("seed", 0))
    if head in BUNDLED:
        if rest:
            raise InputError(f"data {head!r} takes no arguments, not {rest!r}.")
        return bundled(head)
    if head == "text":
        return text.read_text(rest, length)
    if head == "hf":
        name, _, label = rest.partition(":")
        return hub.hugging_face(name, label or None, task, size, length)
    if head == "openml":
        number, _, label = rest.partition(":")
        return hub.openml(number, label or None, task)
    match = _FILE.fullmatch(spec.body)
    if match:
        return _from_file(_readable(match), match["label"], task)
    path = Path(spec.body)
    if path.is_dir():
        return folder.read_folder(path, size)
    if path.is_file():
        known = ", ".join((*tables.SUFFIXES, *arrays.SUFFIXES))
        raise InputError(
            f"{path} is not a kind of file that can be read: {known}, or text:{path} for its bytes."
        )
    if "/" in spec.body or path.suffix:
        raise InputError(f"there is no file or folder {spec.body}.")
    raise InputError(
        f"there is no data {spec.body!r}.{nearest(head, SOURCES)} Known: {', '.join(SOURCES)}, or a path."
    )


def _readable(match: re.Match[str]) -> Path:
    path = Path(match["path"])
    if path.suffix.lower() in arrays.PICKLES:
        raise InputError(
            f"{path} is a pickle, which could run code when opened: save its arrays as .npz or .safetensors."
        )
    arrays.exists(path)
    return path


def _from_file(path: Path, label: str | None, task: Any) -> Dataset:
    if path.suffix.lower() in tables.SUFFIXES:
        return tables.labelled(tables.read_frame(path), label, task, str(path))
    if path.suffix.lower() == ".npy" and not label:
        raise InputError(f"{path} holds no labels: write {path}:LABELS.npy.")
    if path.suffix.lower() != ".npy" and label:
        raise InputError(
            f"{path} names its labels itself ('y' or 'labels'), so {label!r} is one argument too many."
        )
    x, y = arrays.read_file(path, label)
    if y is None:
        raise InputError(f"{path} holds inputs but no labels: add them as 'y' or 'labels'.")
    if (documents := arrays.read_documents(path)) is not None:
        return arrays.searched(x, y, documents, str(path))
    return arrays.labelled(x, y, str(path), task)


def _from_object(source: Any, spec: Spec, label: str | None, kind: Kind | None) -> Dataset:
    if isinstance(source, Dataset):
        return source
    frame = tables.as_frame(source)
    if frame is not None:
        if label is None:
            raise InputError(
                f"which column is the label? Pass label=...; columns: {', '.join(frame.columns)}."
            )
        return tables.labelled(frame, label, spec.reads, "frame")
    if isinstance(source, tuple | list) and len(source) == 2:
        return arrays.labelled(source[0], source[1], "arrays", spec.reads, kind)
    raise InputError(
        f"data must be a spec, a Dataset, a pair (x, y) or a frame, not {type(source).__name__}."
    )


def _check_options(spec: Spec, dataset: Dataset) -> None:
    """Raise `InputError` for options that this data set has no use for."""
    for key in ("noise", "noise_type", "imbalance"):
        able = (*OF_CLASSES, "sequence") if key != "imbalance" else OF_CLASSES
        if key in spec.options and dataset.task not in able:
            raise InputError(f"+{key} is for classification, and {dataset.name} is a {dataset.task} task.")
    task = spec.options.get("task")
    if task is not None and dataset.task == "search":
        raise InputError(f"+task={task} needs labels, and {dataset.name} is a search task.")
    if task == "oneclass" and (spec.pending != Options()):
        raise InputError("+task=oneclass has no wrong labels and no imbalance among its training rows.")
    if task == "crowd" and "votes" not in dataset.extras:
        raise InputError(f"+task=crowd needs the votes of workers, and {dataset.name} has none.")
    if task == "crowd" and (spec.pending != Options()):
        raise InputError("+task=crowd knows votes alone: it has no wrong labels, no imbalance and no bags.")
    learned = dataset.task if task is None else task
    if "bags" in spec.options and learned != "classification":
        raise InputError(f"+bags is for classification, and {dataset.name} asks for {learned}.")
    if task == "segmentation" and "segmentation" not in dataset.extras:
        raise InputError(f"+task=segmentation needs the class of every pixel, and {dataset.name} has none.")
    if task == "depth" and dataset.task != "depth" and "depth" not in dataset.extras:
        raise InputError(f"+task=depth needs the depth of every pixel, and {dataset.name} has none.")
    if task == "depth" and spec.pending != Options():
        raise InputError("+task=depth has no classes: no wrong labels, no imbalance and no bags.")
    if task in OF_CLASSES and dataset.task not in OF_CLASSES:
        raise InputError(f"+task={task} needs classes, and {dataset.name} is a {dataset.task} task.")
    head = spec.body.partition(":")[0]
    is_folder = head not in SOURCES and Path(spec.body).is_dir()
    uses = {
        "size": head == "hf" or is_folder,
        "length": head in ("hf", "text"),
        "task": spec.options.get("task") in ("ordinal", "retrieval", "oneclass", "crowd", *OF_PIXELS)
        or (not (_known(spec.body) and head not in ("hf", "openml")) and not is_folder),
    }
    for key, used in uses.items():
        if key in spec.options and not used:
            raise InputError(f"+{key} has no effect on {spec.body}.")
