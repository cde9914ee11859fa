"""Data that is drawn rather than read: every function takes a `torch.Generator` first and returns a
`Dataset`; the same generator state gives the same data. `load("mixture:classes=20,dim=32")` calls them by
name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_type_hints

from logitkit.data.base import Dataset, seeded
from logitkit.data.generators.concepts import concepts
from logitkit.data.generators.detections import detections
from logitkit.data.generators.glyphs import glyphs
from logitkit.data.generators.labelling import crowd, ratings
from logitkit.data.generators.marks import marks
from logitkit.data.generators.points import hierarchy, mixture, moons, spirals, words
from logitkit.data.generators.retrieval import extreme, pairs, passages
from logitkit.data.generators.sequences import facts, modular, recall, strings
from logitkit.data.generators.shapes import attributes, scenes, shapes
from logitkit.data.generators.tabular import bimodal, friedman, linear, mixed, tabular
from logitkit.data.generators.textures import textures
from logitkit.data.spec import arguments, real, shown, whole
from logitkit.errors import InputError, nearest

GENERATORS: dict[str, Callable[..., Dataset]] = {
    f.__name__: f
    for f in (
        moons,
        spirals,
        mixture,
        hierarchy,
        words,
        tabular,
        concepts,
        friedman,
        linear,
        bimodal,
        mixed,
        shapes,
        attributes,
        scenes,
        detections,
        glyphs,
        textures,
        marks,
        modular,
        recall,
        strings,
        facts,
        crowd,
        ratings,
        extreme,
        pairs,
        passages,
    )
}

__all__ = [
    "GENERATORS",
    "attributes",
    "bimodal",
    "concepts",
    "crowd",
    "detections",
    "extreme",
    "facts",
    "friedman",
    "generate",
    "glyphs",
    "hierarchy",
    "linear",
    "marks",
    "mixed",
    "mixture",
    "modular",
    "moons",
    "pairs",
    "passages",
    "ratings",
    "recall",
    "scenes",
    "shapes",
    "spirals",
    "strings",
    "tabular",
    "textures",
    "words",
]


def generate(name: str, text: str = "", seed: int = 0) -> Dataset:
    """The data set of generator `name` with the arguments in `text` (`"classes=20,dim=32"`).

    Its name is the spec in canonical form. Raises `InputError` for an unknown or unreadable argument.
    """
    function = GENERATORS[name]
    types = {k: v for k, v in get_type_hints(function).items() if k not in ("generator", "return")}
    given = {}
    for key, value in arguments(text, name).items():
        if key not in types:
            raise InputError(
                f"data {name!r} has no argument {key!r}.{nearest(key, types)} It takes: {', '.join(types)}."
            )
        given[key] = {int: whole, float: real, str: lambda _, word: word}[types[key]](key, value)
    dataset = function(seeded(name, seed), **given)
    spelled = ",".join(f"{key}={shown(given[key])}" for key in types if key in given)
    return replace(dataset, name=f"{name}:{spelled}" if spelled else name)
