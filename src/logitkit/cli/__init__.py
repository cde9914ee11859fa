"""The `logitkit` command."""

from logitkit.cli.app import main

__all__ = ["main"]
