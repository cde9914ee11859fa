"""The one exception a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user passed cannot work; the message is one sentence that says what was passed and what
    was expected. The command line prints it without a traceback and exits with code 2."""


class Stopped(BaseException):
    """The user asked the command to stop (Ctrl-C, SIGTERM). Not an Exception, so that nothing swallows it."""


class WorkerDied(RuntimeError):
    """A worker process ended without saying why; what it had finished is kept."""


class MissingExtra(InputError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}: install it with `pip install 'logitkit[{extra}]'`."
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known word nearest to `word`, or the empty string."""
    known = list(known)
    match = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
