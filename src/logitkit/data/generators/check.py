"""One-sentence checks of generator arguments."""

from __future__ import annotations

from logitkit.errors import InputError, nearest


def at_least(low: float, /, **values: float) -> None:
    """Raise `InputError` for the first of `values` below `low`."""
    for name, value in values.items():
        if value < low:
            raise InputError(f"{name}={value} must be at least {low}.")


def fraction(**values: float) -> None:
    """Raise `InputError` for the first of `values` outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value} must be between 0 and 1.")


def word(known: tuple[str, ...], /, **values: str) -> None:
    """Raise `InputError` for the first of `values` that is not one of `known`."""
    for name, value in values.items():
        if value not in known:
            raise InputError(f"{name}={value} must be one of {', '.join(known)}.{nearest(value, known)}")
