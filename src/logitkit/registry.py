"""How a part says what it is: the card, its search space, and the `@part` decorator.

The bottom layer: imports nothing of logitkit but its errors, and not torch, so that reading cards costs
nothing. `logitkit.catalog` is the way to look parts up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from logitkit.errors import InputError, nearest

T = TypeVar("T")
Task = Literal[
    "classification", "binary", "regression", "multilabel", "retrieval", "bags", "sequence", "segmentation",
    "depth", "boxes", "crowd", "concepts", "reranking", "search", "unlearning",
]  # fmt: skip

ROOMS: Mapping[str, str] = {
    "softmax": "scores to weights: softmax and what to use instead",
    "losses": "objectives on outputs",
    "heads": "last layers",
    "contrast": "objectives on embeddings",
    "distill": "teacher to student",
    "attention": "attention functions and modules",
    "layers": "other building blocks",
    "bottleneck": "codebooks, concept and information bottlenecks",
    "robust": "attacks, adversarial objectives, smoothing, noisy labels",
    "calibrate": "post-hoc probabilities",
    "detect": "out-of-distribution and outlier detection",
    "adapt": "fine-tuning, test-time, continual, merging",
    "compress": "quantise, prune, low-rank",
    "probe": "what a model has learned",
    "theory": "laws that predict a number",
    "train": "optimisers, samplers, training procedures",
    "generate": "generative models and codecs",
    "models": "whole architectures",
}


@dataclass(frozen=True)
class Real:
    """A real hyperparameter in [low, high]; `log=True` searches its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole-number hyperparameter in [low, high]; `log=True` searches its logarithm."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of `options`."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)


Space = Real | Whole | Choice


@dataclass(frozen=True)
class Card:
    """What a part says of itself; the single source for CLI, docs, contract tests and tuning.

    name:         the file's name, and what recipes call it.
    room:         the slot it plugs into.
    title:        one line: the paper's title, or what a reference part is.
    paper:        where it was published (`"arXiv:2112.14869"`), None for a reference part.
    number:       the paper's number in logitkit's list of 225; None if it is not on it.
    companion_of: name of the part that holds this paper's main card, when one paper brings several parts.
    replaces:     the reference part it is a drop-in for.
    aliases:      other names that recipes accept.
    tasks:        what it can be trained on.
    needs:        extra keyword arguments its call takes (`"features"`, `"ids"`, `"model"`, `"inputs"`,
                  `"target"`, `"views"`, `"lengths"`, `"bags"`, `"teacher_logits"`); the engine supplies
                  them. A detector's say what it is fitted on: `"logits"` or `"features"`, and `"labels"`.
    search_space: hyperparameter -> range, what `tune=K` searches.
    no_compile:   why `torch.compile(fullgraph=True)` cannot work, if it cannot.
    no_gradcheck: why its autograd gradient is not the derivative of its value, if it is not.
    no_half:      why half precision need not come near its float32 value, if it need not.
    build:        the class or function itself.
    """

    name: str
    room: str
    title: str
    paper: str | None
    number: int | None
    companion_of: str | None
    replaces: str | None
    aliases: tuple[str, ...]
    tasks: frozenset[str]
    needs: tuple[str, ...]
    search_space: Mapping[str, Space]
    no_compile: str | None
    no_gradcheck: str | None
    no_half: str | None
    build: Callable[..., Any] = field(repr=False)

    @property
    def reference(self) -> bool:
        """Whether this is a reference arm rather than a paper's method."""
        return self.paper is None


_cards: dict[tuple[str, str], Card] = {}


def part(
    name: str,
    room: str,
    *,
    title: str,
    paper: str | None = None,
    number: int | None = None,
    companion_of: str | None = None,
    replaces: str | None = None,
    aliases: tuple[str, ...] = (),
    tasks: tuple[Task, ...] = ("classification",),
    needs: tuple[str, ...] = (),
    search_space: Mapping[str, Space] | None = None,
    no_compile: str | None = None,
    no_gradcheck: str | None = None,
    no_half: str | None = None,
) -> Callable[[T], T]:
    """Register the decorated class or function as a part. The fields are those of `Card`."""
    if room not in ROOMS:
        raise InputError(
            f"part {name!r} names the room {room!r}, which does not exist.{nearest(room, ROOMS)}"
        )

    def register(build: T) -> T:
        card = Card(
            name=name, room=room, title=title, paper=paper, number=number, companion_of=companion_of,
            replaces=replaces, aliases=aliases, tasks=frozenset(tasks), needs=needs,
            search_space=dict(search_space or {}), no_compile=no_compile, no_gradcheck=no_gradcheck,
            no_half=no_half, build=build,  # type: ignore[arg-type]
        )  # fmt: skip
        unknown = set(card.search_space) - set(inspect.signature(card.build).parameters)
        if unknown:
            raise InputError(
                f"the search space of part {name!r} names {sorted(unknown)}, which it does not take."
            )
        for key in (name, *aliases):
            other = _cards.get((room, key))
            if other is not None and _home(other.build) != _home(card.build):
                raise InputError(f"two parts of room {room!r} are called {key!r}.")
            _cards[room, key] = card
        return build

    return register


def _home(build: Callable[..., Any]) -> tuple[str, str]:
    """Module and name, which stay the same when a notebook or a reload runs the definition again."""
    return build.__module__, build.__qualname__


def registered() -> Mapping[tuple[str, str], Card]:
    """Every (room, name or alias) -> card that has been imported so far."""
    return _cards
