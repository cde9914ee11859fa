"""What exists: look parts up by room and name, and build them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

from logitkit.errors import InputError, nearest
from logitkit.registry import ROOMS, Card, registered

# What a caller knows about the place a part goes into. `create` hands a part those it asks for by name
# and leaves the others out, so that one call builds any part of a room.
CONTEXT = (
    "in_features", "num_classes", "class_names", "num_concepts", "num_samples", "num_tasks", "input_shape",
    "vmin", "vmax", "documents", "pixels",
    "vocabulary", "embed_dim", "num_heads", "grid", "max_len", "n_ref",
)  # fmt: skip


def _open(room: str) -> None:
    if room not in ROOMS:
        raise InputError(f"there is no room {room!r}.{nearest(room, ROOMS)} Rooms: {', '.join(ROOMS)}.")
    if importlib.util.find_spec(f"logitkit.{room}") is not None:
        importlib.import_module(f"logitkit.{room}")


def cards(room: str | None = None) -> list[Card]:
    """Every card of one room, or of all rooms, ordered by room and name."""
    for each in ROOMS if room is None else (room,):
        _open(each)
    order = list(ROOMS)
    found = {(c.room, c.name): c for c in registered().values() if room is None or c.room == room}
    return sorted(found.values(), key=lambda c: (order.index(c.room), c.name))


def get(room: str, name: str) -> Card:
    """The card of the part called `name` (or aliased so) in `room`.

    Raises `InputError` that names the nearest part when there is none, or the right room when the part
    lives in another.
    """
    _open(room)
    card = registered().get((room, name))
    if card is not None:
        return card
    hint = nearest(name, [key for r, key in registered() if r == room])
    if not hint:
        elsewhere = sorted({c.room for c in cards() if name in (c.name, *c.aliases)})
        if elsewhere:
            hint = f" {name!r} is a part of room {elsewhere[0]!r}."
    raise InputError(f"room {room!r} has no part {name!r}.{hint} See `logitkit list {room}`.")


def find(name: str) -> list[Card]:
    """Cards of every room whose name or alias is `name`; `room/name` asks for one room."""
    if "/" in name:
        room, name = name.split("/", 1)
        return [get(room, name)]
    found = [c for c in cards() if name in (c.name, *c.aliases)]
    if not found:
        known = [key for c in cards() for key in (c.name, *c.aliases)]
        raise InputError(f"there is no part {name!r}.{nearest(name, known)} See `logitkit list`.")
    return found


def create(room: str, name: str, **arguments: Any) -> Any:
    """Build the part `name` of `room`.

    `arguments` are the part's own. Those named in `CONTEXT` describe the place it goes into and are
    handed over only if the part asks for them.

    >>> loss = create("losses", "ldr", num_classes=10, lam=0.5)

    Raises `InputError` for an unknown room, part or argument, naming the nearest, and for arguments that the
    part refuses.
    """
    card = get(room, name)
    takes = inspect.signature(card.build).parameters
    arguments = {k: v for k, v in arguments.items() if k in takes or k not in CONTEXT}
    for key in arguments:
        if key not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise InputError(
                f"part {room}/{card.name} has no argument {key!r}.{nearest(key, takes)}"
                f" It takes: {', '.join(takes) or 'none'}."
            )
    missing = [
        k for k, p in takes.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and k not in arguments
    ]  # fmt: skip
    if missing:
        raise InputError(f"part {room}/{card.name} needs the argument {missing[0]!r}.")
    try:
        return card.build(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{room}/{card.name}: {error}") from error
