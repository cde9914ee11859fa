"""Ours against every peer that is installed and against the machine's limit: `logitkit bench`."""

from logitkit.bench.run import find, names, run, save

__all__ = ["find", "names", "run", "save"]
