"""The grammar of data specs: `SOURCE[:ARGUMENT][+option=value ...]`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from logitkit.data.base import OF_CLASSES, Options
from logitkit.errors import InputError, nearest

NOISE_TYPES = ("symmetric", "pair")
PENDING = ("noise", "noise_type", "imbalance", "bags")
"""Options that `split` applies."""
TASKS = (
    "classification", "regression", "ordinal", "retrieval", "oneclass", "crowd", "segmentation", "depth",
)  # fmt: skip

_OPTIONS = re.compile(r"(?:\+[A-Za-z_]+=[^+]*)+$")


@dataclass(frozen=True)
class Spec:
    """`body` is the spec without its options: a name, `name:arguments`, or `path[:label]`."""

    body: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The spec in canonical form: options in alphabetical order, numbers without trailing zeros."""
        return self.body + "".join(f"+{key}={shown(value)}" for key, value in sorted(self.options.items()))

    @property
    def reads(self) -> Any:
        """The task that labels are read for, if the spec says: ordinal and retrieval tasks have classes."""
        task = self.options.get("task")
        return "classification" if task in OF_CLASSES else task

    @property
    def pending(self) -> Options:
        """The options that `split` applies."""
        return Options(**{k: v for k, v in self.options.items() if k in PENDING})


def shown(value: object) -> str:
    """How a value is written in a spec."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(text: str, **options: object) -> Spec:
    """Read a spec; `options` are added to those it spells out.

    >>> parse("digits+noise=0.40").name
    'digits+noise=0.4'
    """
    found = _OPTIONS.search(text)
    body = text[: found.start()] if found else text
    pairs: list[tuple[str, object]] = list(options.items())
    if found:
        items = (item.partition("=") for item in found.group()[1:].split("+"))
        pairs = [*((key, value) for key, _, value in items), *pairs]
    read: dict[str, Any] = {}
    for key, value in pairs:
        if key not in _READ:
            raise InputError(
                f"data {text!r} has the unknown option {key!r}.{nearest(key, _READ)}"
                f" Options: {', '.join(_READ)}."
            )
        read[key] = _READ[key](key, value)
    if not body:
        raise InputError(f"data {text!r} names no source, e.g. 'digits' or 'table.csv:label'.")
    return Spec(body, read)


def arguments(text: str, where: str) -> dict[str, str]:
    """`"p=59,form=onehot"` as a dictionary."""
    pairs = {}
    for item in text.split(",") if text else []:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise InputError(f"{where} takes key=value arguments separated by commas, not {item!r}.")
        pairs[key] = value
    return pairs


def whole(key: str, value: object, at_least: int = 0) -> int:
    """`value` as a whole number of at least `at_least`."""
    try:
        number = int(str(value))
    except ValueError:
        raise InputError(f"{key}={value} must be a whole number.") from None
    if number < at_least:
        raise InputError(f"{key}={value} must be at least {at_least}.")
    return number


def real(key: str, value: object) -> float:
    """`value` as a finite number."""
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{key}={value} must be a number.")
    return number


def one_of(key: str, value: object, known: tuple[str, ...]) -> str:
    """`value` if it is one of the words in `known`."""
    if value not in known:
        raise InputError(f"{key}={value} must be one of {', '.join(known)}.{nearest(str(value), known)}")
    return str(value)


def _noise(key: str, value: object) -> float:
    number = real(key, value)
    if not 0 <= number < 1:
        raise InputError(f"{key}={value} must be a fraction of the labels, at least 0 and below 1.")
    return number


def _imbalance(key: str, value: object) -> float:
    number = real(key, value)
    if number < 1:
        raise InputError(f"{key}={value} must be the ratio of the largest class to the smallest, at least 1.")
    return number


_READ: Mapping[str, Callable[[str, object], Any]] = {
    "noise": _noise,
    "noise_type": lambda key, value: one_of(key, value, NOISE_TYPES),
    "imbalance": _imbalance,
    "bags": lambda key, value: whole(key, value, at_least=1),
    "limit": lambda key, value: whole(key, value, at_least=1),
    "seed": whole,
    "size": lambda key, value: whole(key, value, at_least=1),
    "length": lambda key, value: whole(key, value, at_least=2),
    "task": lambda key, value: one_of(key, value, TASKS),
}
