"""What a benchmark is: cases, the arms of each, and the figures they must reach.

A benchmark is a module of this package. Its docstring's first line is its title; `PEERS` names the
distributions it compares with; `cases()` returns its cases; `NOTE` says in plain words what was reached and
what stands in the way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

Arm = Callable[[], object]


@dataclass(frozen=True)
class Arms:
    """What runs against what on the same inputs.

    run:    one callable per arm; peers that are not installed are left out.
    leaves: inputs whose gradients the arms make, so that these do not count as extra memory.
    values: numbers of interest that are no times, such as errors, taken after the arms have run.
    """

    run: Mapping[str, Arm]
    leaves: Sequence[Tensor] = ()
    values: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Goal:
    """A figure to reach: `at_most` for a ratio of times (`arm` over `of`), for an arm's extra MiB, or for a
    value."""

    arm: str
    at_most: float
    of: str | None = None
    unit: str = "x"  # "x" a ratio of times, "MiB" extra memory, "value" one of the case's values

    @property
    def text(self) -> str:
        if self.unit == "x":
            return f"{self.arm} <= {self.at_most:.3g}x {self.of}"
        return f"{self.arm} <= {self.at_most:.3g}" + (" MiB extra" if self.unit == "MiB" else "")


@dataclass(frozen=True)
class Case:
    """One setting of a benchmark.

    build(small) makes the inputs and the arms; `small=True` gives the same arms on a tiny problem, to load
    libraries and compile kernels beforehand. memory names the arms whose peak memory is measured, each in its
    own process.
    """

    name: str
    build: Callable[[bool], Arms]
    goals: Sequence[Goal] = ()
    memory: Sequence[str] = ()
    rounds: int = 7


def peer(module: str) -> ModuleType | None:
    """The module, or None where it, or something it needs, is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
