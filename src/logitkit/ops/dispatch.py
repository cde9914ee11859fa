"""Which implementation of an op runs: the plain torch reference, the CPU kernel, or the Triton kernel.

Every op with kernels is a package: `reference.py` reads like the formula, `cpu.py` and `triton.py` define the
same functions with the same signatures, and `__init__.py` holds the public function, which checks its input
and asks `implementation` for the module to call.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
NAMES = ("reference", "cpu", "triton")


# OpenMP's threads do not survive a fork, and asking for them after it hangs or ends the process.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


class KernelWarning(UserWarning):
    """A kernel was asked for and could not run; the reference ran in its place."""


class use:
    """Make every op use one implementation: `use("reference")`, `use("cpu")` or `use("triton")`.

    Takes effect at once and for the whole process; as a context manager, until the end of the block.
    `use(None)` gives the choice back to the ops. An op that has no such implementation for its input warns
    (`KernelWarning`) and runs its reference.

    Raises: ValueError for another name.
    """

    forced: str | None = None

    def __init__(self, name: str | None) -> None:
        if name is not None and name not in NAMES:
            raise ValueError(f"the implementation must be one of {NAMES} or None, got {name!r}.")
        self.previous = use.forced
        use.forced = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use.forced = self.previous


def implementation(
    reference: ModuleType,
    like: Tensor,
    *,
    cpu: bool | str = "it has none",
    triton: bool | str = "it has none",
) -> ModuleType:
    """The module to call for an input such as `like`: the op's `reference`, or `cpu` or `triton` beside it.

    `cpu` and `triton` say what the op's kernels make of this input: True, it can take it and is faster;
    False, it can but plain torch is faster; a string, why it cannot. What `use` forces is run wherever it can
    be.
    """
    if torch.compiler.is_compiling():
        return reference  # which the compiler can see into
    op = reference.__name__.rsplit(".", 2)[1]
    offers: dict[str, bool | str] = {"cpu": cpu, "triton": triton}
    if like.device.type != "cpu" and cpu in (True, False):
        offers["cpu"] = f"the tensors are on {like.device.type}"
    if like.device.type != "cuda" and triton in (True, False):
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # possible then, but slow
        offers["triton"] = False if interpreted else f"the tensors are on {like.device.type}"
    if _forked and cpu in (True, False) and torch.get_num_threads() > 1:
        offers["cpu"] = "this process was forked from one whose threads it does not have"
    name = use.forced
    if name is None:
        name = next((n for n, offer in offers.items() if offer is True), "reference")
    elif isinstance(reason := offers.get(name), str):
        _warn(op, name, reason)
        name = "reference"
    if name == "reference":
        return reference
    try:
        return importlib.import_module(f"logitkit.ops.{op}.{name}")
    except ImportError as error:
        _warn(op, name, str(error))
        return reference


def untraced(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep `torch.compile` from looking into `function`: it runs as it is, between two compiled pieces.

    For ops that save memory, which the compiler's form of the reference would not. (As a decorator,
    `torch.compiler.disable` would import the compiler, a second's work, together with the op.)
    """

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Result:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments, **keywords)
        return function(*arguments, **keywords)

    return run


def no_second_derivatives(op: str) -> None:
    """Called first in the backward of a kernel that has none: refuse, where they are asked for.

    `once_differentiable` would not do: it leaves gradients out of the graph without a word when what comes
    from above needs none.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"the kernel of {op} has no second derivatives (create_graph=True);"
            " logitkit.ops.use('reference') has them."
        )


def _warn(op: str, name: str, reason: str) -> None:
    warnings.warn(
        f"logitkit.ops.{op} cannot use its {name} kernel here ({reason}); the plain torch form runs instead.",
        KernelWarning,
        stacklevel=4,
    )
