"""Train, validation and test: stratified, seeded, with noise and imbalance where they belong."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from logitkit.data.base import IGNORE, OF_CLASSES, Dataset, Options, Split, answer_length, seeded
from logitkit.errors import InputError

REGRESSION_STRATA = 10
"""Targets of a regression task are stratified by decile."""


def split(dataset: Dataset, seed: int, test: float = 0.2, val: float = 0.2) -> Split:
    """Split `dataset` into train, validation and test rows.

    test, val: fractions of all rows, each in [0, 1) and together below 1. Every class keeps its share in each
    part to within one row, and at least one row in each part that is not empty. Regression targets are
    stratified by decile; crowds, depth, multi-label and sequence tasks are split at random. A source with a
    fixed split keeps its test rows (and validation rows, if it has them) whatever the seed. For retrieval,
    `test` is the fraction of classes, at least 2, that training never sees, whatever the source; labels are
    numbered anew, the classes seen in training first. For one class, training and validation rows are of the
    most frequent class, labelled 0; test rows are the rest of it and, labelled 1, all others. For
    segmentation `test` is the fraction of classes that training never sees, at least 1 of those besides the
    background: images that show one are test rows, and classes are numbered anew, those seen in training
    first. For unlearning, where there is nothing to generalise to, all rows train and validate, and all are
    test rows but those that are answered already with what others are to be answered with instead.

    The options of the data set are applied here. Imbalance thins the training rows only: class k of K keeps n
    * ratio^(-k/(K-1)) rows, with n the largest count for which every class has enough. Label noise replaces
    exactly `noise` of the training and of the validation labels (of a sequence task, of the tokens that are
    scored) by a wrong one; the true labels are in `extras["y_clean"]` and `extras["noisy"]` marks the rows.
    Bags are made last: training and validation rows are shuffled, each `bags` of them in turn are a bag, what
    is left over a smaller one, and the mean of a bag's labels takes the place of its rows' own;
    `extras["bag"]`, then the only annotation, is the bag of each row. Of a crowd, votes take the place of
    training and validation labels and of all annotations, and rows that nobody voted on are left out of these
    parts. Test rows stay as they are.

    Raises `InputError` for fractions out of range, a single class, a class with too few rows, or bags that
    are larger than a part.
    """
    if not (0 <= test < 1 and 0 <= val < 1 and test + val < 1):
        raise InputError(
            f"test={test} and val={val} must be fractions of the rows that leave some to train on."
        )
    if dataset.task == "retrieval":
        dataset, index = _by_class(dataset, test, val, seed)
    elif dataset.task == "oneclass":
        dataset, index = _one_class(dataset, test, val, seed)
    elif dataset.task == "segmentation":
        dataset, index = _by_shown_class(dataset, test, val, seed)
    elif dataset.task == "unlearning":
        index = _facts(dataset)
    elif dataset.fixed_split is None:
        everything = torch.arange(len(dataset))
        index = _cut(dataset, everything, {"test": test, "val": val}, seed)
    else:
        index = _complete(dataset, {"test": test, "val": val}, seed)
    if dataset.options.imbalance > 1:
        index["train"] = _thin(dataset, index["train"], dataset.options.imbalance, seed)
    if dataset.task == "bags":
        index |= {part: _shuffled(dataset, index[part], part, seed) for part in ("train", "val")}
    if dataset.task == "crowd":
        index |= {part: _voted(dataset, index[part]) for part in ("train", "val")}
    parts = {}
    for part, rows in index.items():
        taken = replace(dataset.take(rows), options=Options(), fixed_split=None)
        if dataset.options.noise > 0:
            fraction = 0.0 if part == "test" else dataset.options.noise
            taken = _with_noise(taken, fraction, dataset.options.noise_type, seeded(seed, "noise", part))
        if dataset.task == "bags" and part != "test":
            taken = _with_means(taken, dataset.options.bags, dataset.num_classes)
        if dataset.task == "crowd" and part != "test":
            taken = replace(taken, y=taken.extras["votes"], extras={})
        if dataset.task == "unlearning" and part == "test":
            taken = replace(taken, y=torch.stack([taken.y, taken.extras["instead"]], dim=1))
        parts[part] = taken
    return Split(parts["train"], parts["val"], parts["test"], index)


def _by_class(dataset: Dataset, test: float, val: float, seed: int) -> tuple[Dataset, dict[str, Tensor]]:
    """Whole classes for test; the others, numbered first, are cut into training and validation rows."""
    present = dataset.y.unique()
    unseen = max(2, round(test * len(present)))
    if len(present) < unseen + 2:
        raise InputError(
            f"{dataset.name} has {len(present)} classes, fewer than the 4 that retrieval needs: 2 to train on"
            " and 2 to find."
        )
    order = present[torch.randperm(len(present), generator=seeded(seed, "classes"))]
    place = torch.full((int(dataset.y.max()) + 1,), -1)
    place[order] = torch.arange(len(order))
    y, seen = place[dataset.y], len(present) - unseen
    names = dataset.class_names and tuple(dataset.class_names[k] for k in order.tolist())
    dataset = replace(dataset, y=y, class_names=names, fixed_split=None)
    index = _cut(dataset, (y < seen).nonzero().flatten(), {"val": val}, seed)
    return dataset, {**index, "test": (y >= seen).nonzero().flatten()}


def _one_class(dataset: Dataset, test: float, val: float, seed: int) -> tuple[Dataset, dict[str, Tensor]]:
    """The most frequent class, cut into all three parts, and the others for test."""
    ordinary = int(dataset.y.bincount().argmax())
    y = (dataset.y != ordinary).long()
    if not y.any():
        raise InputError(f"every row of {dataset.name} has the same label: there is nothing to find.")
    name = dataset.class_names[ordinary] if dataset.class_names else str(ordinary)
    dataset = replace(dataset, y=y, class_names=(name, f"not {name}"), fixed_split=None)
    index = _cut(dataset, (y == 0).nonzero().flatten(), {"test": test, "val": val}, seed)
    return dataset, {**index, "test": torch.cat([index["test"], (y == 1).nonzero().flatten()])}


def _by_shown_class(
    dataset: Dataset, test: float, val: float, seed: int
) -> tuple[Dataset, dict[str, Tensor]]:
    """Images that show one of some classes for test; the others, which show none of them, for the rest."""
    present = dataset.y.unique()
    present = present[present > 0]
    novel = max(1, round(test * len(present)))
    if len(present) < novel + 1:
        raise InputError(
            f"{dataset.name} shows {len(present)} classes besides the background: one to train on and one to"
            " find are needed."
        )
    shuffled = present[torch.randperm(len(present), generator=seeded(seed, "classes"))]
    order = torch.cat([torch.zeros(1, dtype=torch.int64), shuffled])
    place = torch.zeros(int(dataset.y.max()) + 1, dtype=torch.int64)
    place[order] = torch.arange(len(order))
    y, seen = place[dataset.y], len(order) - novel
    names = dataset.class_names and tuple(dataset.class_names[k] for k in order.tolist())
    dataset = replace(dataset, y=y, class_names=names, fixed_split=None)
    shows = (y >= seen).flatten(1).any(dim=1)
    index = _cut(dataset, (~shows).nonzero().flatten(), {"val": val}, seed)
    return dataset, {**index, "test": shows.nonzero().flatten()}


def _facts(dataset: Dataset) -> dict[str, Tensor]:
    """All rows for every part, without those for test that are no facts."""
    if "instead" not in dataset.extras or not isinstance(dataset.x, Tensor):
        raise InputError(f"{dataset.name} is an unlearning task of tokens without extras['instead'].")
    x, y, instead = dataset.x, dataset.y, dataset.extras["instead"]
    marked = (instead != IGNORE).any(dim=1)
    if not marked.any() or marked.all():
        raise InputError(
            f"{dataset.name} marks {int(marked.sum())} of {len(y)} rows to be forgotten: some are to be kept."
        )
    if not answer_length(x, y):
        raise InputError(
            f"{dataset.name} is an unlearning task, of which every row is a prompt and then an answer, each"
            " token of which is the next input."
        )
    everything = torch.arange(len(y))
    templates = instead[marked].unique(dim=0)
    is_template = (y[:, None] == templates).all(dim=2).any(dim=1)
    return {"train": everything, "val": everything, "test": everything[~is_template]}


def _complete(dataset: Dataset, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """The source's own split; parts it lacks are cut from its training rows."""
    fixed = dict(dataset.fixed_split or {})
    lacking = {part: fraction for part, fraction in fractions.items() if part not in fixed}
    index = _cut(dataset, fixed["train"], lacking, seed)
    return {**index, **{part: fixed[part] for part in fractions if part in fixed}}


def _strata(dataset: Dataset, rows: Tensor) -> Tensor:
    """(rows,) the stratum of each row, numbered without gaps."""
    if dataset.task in OF_CLASSES:
        return torch.unique(dataset.y[rows], return_inverse=True)[1]
    if dataset.task == "regression":
        strata = max(1, min(REGRESSION_STRATA, len(rows) // 5))
        rank = dataset.y[rows].argsort(stable=True).argsort(stable=True)
        return rank * strata // len(rows)
    return torch.zeros(len(rows), dtype=torch.int64)


def _cut(dataset: Dataset, rows: Tensor, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Cut `rows` into train and one part per entry of `fractions`, each stratum in proportion."""
    _enough(dataset, rows, parts=1 + sum(fraction > 0 for fraction in fractions.values()))
    generator = seeded(seed, "split")
    strata = _strata(dataset, rows)
    sizes = strata.bincount()
    shuffled = torch.randperm(len(rows), generator=generator)
    order = shuffled[strata[shuffled].argsort(stable=True)]
    first = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(rows)) - first[strata[order]]

    index, taken = {}, torch.zeros_like(sizes)
    waiting = sum(fraction > 0 for fraction in fractions.values())
    for part, fraction in fractions.items():
        waiting -= fraction > 0
        most = sizes - taken - 1 - waiting
        count = _apportion(sizes, fraction, generator).clamp(min=int(fraction > 0)).minimum(most)
        count = torch.zeros_like(sizes) if fraction == 0 else count
        index[part] = rows[(rank >= taken[strata]) & (rank < (taken + count)[strata])]
        taken = taken + count
    return {"train": rows[rank >= taken[strata]], **index}


def _apportion(sizes: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Whole numbers near `sizes * fraction` that add up to the rounded total: largest remainders first,
    ties broken at random."""
    exact = sizes.double() * fraction
    count = exact.floor().long()
    extra = round(fraction * int(sizes.sum())) - int(count.sum())
    tie = torch.rand(len(sizes), generator=generator, dtype=torch.float64) * 1e-6
    count[(exact - count + tie).argsort(descending=True)[:extra]] += 1
    return count


def _enough(dataset: Dataset, rows: Tensor, parts: int) -> None:
    if len(rows) < parts:
        raise InputError(f"{dataset.name} has {len(rows)} rows, too few for {parts} parts.")
    if dataset.task not in OF_CLASSES or dataset.task == "oneclass":
        return
    counts = dataset.y[rows].bincount()
    present = counts.nonzero().flatten()
    if len(present) < 2:
        only = _class_name(dataset, int(present[0]))
        raise InputError(
            f"every row of {dataset.name} has the label {only}: at least two classes are needed."
        )
    if len(rows) < parts * len(present):
        raise InputError(
            f"{dataset.name} has {len(rows)} rows of {len(present)} classes, fewer than the {parts} rows"
            " per class that training, validation and test need."
        )
    rarest = present[counts[present].argmin()]
    if counts[rarest] < parts:
        raise InputError(
            f"class {_class_name(dataset, int(rarest))} of {dataset.name} has {int(counts[rarest])} row(s),"
            f" fewer than the {parts} that training, validation and test need."
        )


def _class_name(dataset: Dataset, label: int) -> str:
    return repr(dataset.class_names[label]) if dataset.class_names else str(label)


def _thin(dataset: Dataset, rows: Tensor, ratio: float, seed: int) -> Tensor:
    """Rows left when class counts follow an exponential tail with max/min = `ratio`."""
    y = dataset.y[rows]
    classes, y = torch.unique(y, return_inverse=True)
    share = ratio ** -(torch.arange(len(classes), dtype=torch.float64) / (len(classes) - 1))
    largest = (y.bincount() / share).min()
    target = (largest * share + 1e-9).floor().long().clamp(min=1)
    shuffled = torch.randperm(len(rows), generator=seeded(seed, "imbalance"))
    order = shuffled[y[shuffled].argsort(stable=True)]
    sizes = y.bincount()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[y[order]]
    return rows[rank < target[y]]


def _with_noise(dataset: Dataset, fraction: float, kind: str, generator: torch.Generator) -> Dataset:
    """`fraction` of the labels replaced by a wrong one; the true ones in `extras["y_clean"]`."""
    labelled = (dataset.y.flatten() != IGNORE).nonzero().flatten()
    chosen = labelled[torch.randperm(len(labelled), generator=generator)[: round(fraction * len(labelled))]]
    shift = torch.ones_like(chosen)
    if kind == "symmetric":
        shift = torch.randint(1, dataset.num_classes, chosen.shape, generator=generator)
    y, noisy = dataset.y.clone(), torch.zeros_like(dataset.y, dtype=torch.bool)
    y.view(-1)[chosen] = (y.view(-1)[chosen] + shift) % dataset.num_classes
    noisy.view(-1)[chosen] = True
    return replace(dataset, y=y, extras={**dataset.extras, "y_clean": dataset.y, "noisy": noisy})


def _shuffled(dataset: Dataset, rows: Tensor, part: str, seed: int) -> Tensor:
    """`rows` in the order in which bags are made of them."""
    size = dataset.options.bags
    if 0 < len(rows) < size:
        raise InputError(f"{dataset.name} has {len(rows)} rows in {part}, too few for a bag of {size}.")
    return rows[torch.randperm(len(rows), generator=seeded(seed, "bags", part))]


def _with_means(dataset: Dataset, size: int, classes: int) -> Dataset:
    """Each `size` rows in turn are a bag, and know the mean of its labels only."""
    bag = torch.arange(len(dataset)) // size
    counts = torch.zeros(math.ceil(len(bag) / size), classes)
    counts.index_put_((bag, dataset.y), torch.ones(len(bag)), accumulate=True)
    return replace(dataset, y=(counts / counts.sum(1, keepdim=True))[bag], extras={"bag": bag})


def _voted(dataset: Dataset, rows: Tensor) -> Tensor:
    """Those of `rows` that somebody voted on."""
    if "votes" not in dataset.extras:
        raise InputError(f"{dataset.name} is a crowd task without extras['votes'] (rows, workers).")
    return rows[(dataset.extras["votes"][rows] >= 0).any(dim=1)]
