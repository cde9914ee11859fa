"""The small problems that many claims about architectures share.

trial.run(seed, **TINY_VIT, attention="sigmoid")               digits, one token per pixel
digits_accuracy(trial, attention="sigmoid")                    the same for every seed
trial.run(seed, code(), **CODE_LM, attention="sigmoid")        bytes of Python source
trial.run(seed, data.load(f"shapes:n=2500+seed={seed}"), ...)  grey shapes of 32x32 pixels, 6 classes
trial.run(seed, data.load("recall:n=6000,vocab=32,pairs=4,length=32"), ...)   associative recall
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.claims.base import Trial, accuracy
from logitkit.data.base import Dataset
from logitkit.data.text import stdlib_sources, windows
from logitkit.engine import Prepared, Recipe, RunResult

__all__ = ["CODE_LM", "TINY_VIT", "accuracies", "code", "digits_accuracy", "nats", "source", "text_loss"]

TINY_VIT: dict[str, Any] = {
    "data": "digits", "model": "vit(patch=1,dim=32,depth=2,heads=4)", "epochs": 15, "batch_size": 8,
    "lr": 5e-3, "warmup": 0.1,
}  # fmt: skip
"""Settings of a vision transformer with 64 tokens of one pixel. Batch size and rate are the best of seven
pairs for softmax attention (seed 7: 81 %, other pairs 28 to 77 %)."""

CODE_LM: dict[str, Any] = {
    "model": "transformer(depth=2,dim=64,heads=4)", "batch_size": 16, "steps": 300, "lr": 1e-3,
}  # fmt: skip
"""Settings of a language model of 2 layers, for `code()`; AdamW with the cosine schedule."""

TRAIN = ("argparse", "difflib", "email", "json", "logging", "unittest", "urllib", "xml")
VAL = ("configparser", "pickle", "subprocess")
TEST = ("mailbox", "tarfile", "threading")


@functools.cache
def code(length: int = 64, train: int = 400_000, held_out: int = 100_000) -> Dataset:
    """Windows of `length` bytes of Python's standard library, with validation and test text from modules that
    training never sees; `train` and `held_out` bytes at most."""
    sizes = {"train": train, "val": held_out, "test": held_out}
    parts = {
        part: _first(windows(stdlib_sources(modules), length, f"code:{part}"), sizes[part] // length)
        for part, modules in (("train", TRAIN), ("val", VAL), ("test", TEST))
    }
    x, y = (torch.cat([getattr(p, name) for p in parts.values()]) for name in ("x", "y"))
    rows = dict(zip(parts, torch.arange(len(x)).split([len(p) for p in parts.values()]), strict=True))
    base = parts["train"]
    return Dataset(
        "code", x, y, "sequence", "tokens", base.class_names, vocabulary=base.vocabulary, fixed_split=rows
    )


def accuracies(trial: Trial, dataset: Dataset | None = None, **settings: Any) -> list[float]:
    """Percent right on test rows with each seed; quicker to have than all that `trial.run` measures."""
    found = []
    for seed in trial.seeds:
        recipe = Recipe.of(**settings, seed=seed, split_seed=seed)
        prepared = Prepared.of(data.split(data.load(recipe.data) if dataset is None else dataset, seed))
        found.append(accuracy(trial.train(prepared, recipe).network.eval(), prepared.test))
    return found


def digits_accuracy(trial: Trial, **settings: Any) -> list[float]:
    """The same of `TINY_VIT` with other settings; a quick run takes large steps."""
    hurry = {"batch_size": 256} if trial.quick else {}
    return accuracies(trial, **{**TINY_VIT, **settings, **hurry})


def source(trial: Trial, length: int = 64) -> Dataset:
    """`code(length)`, or a little of it in a quick run."""
    return code(length, trial.few(400_000, 40_000), trial.few(100_000, 4_096))


def nats(result: RunResult) -> float:
    """Mean loss per byte on test text, in nats."""
    return result.metrics["bits"] * math.log(2)


@torch.no_grad()
def text_loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """Mean loss per token of rows (x, y), in nats."""
    x, y = rows
    size = max(1, 2**12 // x.shape[1])
    batches = zip(x.split(size), y.split(size), strict=True)
    total = sum(F.cross_entropy(network(a), b.flatten(), reduction="sum").item() for a, b in batches)
    return total / y.numel()


def _first(dataset: Dataset, rows: int) -> Dataset:
    """`rows` rows spread evenly over the text."""
    if rows >= len(dataset):
        return dataset
    return dataset.take(torch.linspace(0, len(dataset) - 1, rows).long())
