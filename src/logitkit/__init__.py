"""logitkit: everything between a representation and a decision.

Rooms (`logitkit.losses`, `logitkit.heads`, ...) hold the parts; `logitkit.create` builds one by name,
`logitkit.compare` ranks many on your data, `logitkit.load` brings back a saved winner. Nothing heavier
than the standard library is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitkit.errors import InputError, MissingExtra
from logitkit.registry import ROOMS, part

if TYPE_CHECKING:
    from logitkit.catalog import cards, create
    from logitkit.comparison import compare
    from logitkit.engine import load

__version__ = "0.1.0"
__all__ = ["InputError", "MissingExtra", "cards", "compare", "create", "load", "part"]

_LAZY = {
    "cards": "logitkit.catalog",
    "create": "logitkit.catalog",
    "compare": "logitkit.comparison",
    "load": "logitkit.engine",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ROOMS or name in ("ops", "data", "engine", "claims", "integrations", "report", "catalog"):
        return importlib.import_module(f"logitkit.{name}")
    raise AttributeError(f"module 'logitkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *ROOMS, "data", "engine", "ops"])
