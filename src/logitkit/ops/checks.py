"""What every part checks of its input, with one sentence per mistake.

Shapes and dtypes are always checked. Values (NaN, labels out of range) are checked on the CPU only, because
looking at a value on an accelerator waits for its whole queue, and never while `torch.compile` traces.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def values_visible(x: Tensor) -> bool:
    """Whether looking at the values of `x` is cheap (CPU) and possible (not being traced)."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_logits(
    logits: Tensor, name: str = "logits", classes: int | None = None, values: bool = True
) -> Tensor:
    """Return (batch, classes) floating-point `logits`, in float32 if they came in half precision.

    Raises ValueError for another rank or dtype, an empty batch, fewer than 2 classes (or a class count
    other than `classes`), or NaN, which is not looked for without `values`.
    """
    if logits.ndim != 2:
        raise ValueError(f"{name} must have shape (batch, classes), got {tuple(logits.shape)}.")
    if not logits.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits.dtype}.")
    if logits.shape[0] == 0:
        raise ValueError(
            f"{name} hold an empty batch, shape {tuple(logits.shape)}; expected at least one row."
        )
    if classes is not None and logits.shape[1] != classes:
        raise ValueError(f"{name} must have {classes} columns, got shape {tuple(logits.shape)}.")
    if logits.shape[1] < 2:
        raise ValueError(f"{name} must have at least 2 classes, got shape {tuple(logits.shape)}.")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if values:
        check_numbers(logits, name)
    return logits


def check_numbers(x: Tensor, name: str) -> None:
    """Raise ValueError if `x` holds NaN, where looking at its values is cheap."""
    # The minimum is NaN exactly when there is one, and unlike a sum it cannot overflow.
    if values_visible(x) and math.isnan(x.detach().amin().item()):
        raise ValueError(f"{name} contain NaN; expected numbers.")


def check_labels(target: Tensor, batch: int, classes: int, ignore_index: int | None = None) -> Tensor:
    """Return (batch,) integer class labels as int64.

    Raises ValueError for another shape or dtype, or a label outside [0, classes) that is not `ignore_index`.
    """
    if target.ndim != 1 or target.shape[0] != batch:
        raise ValueError(f"target must have shape ({batch},) to match the logits, got {tuple(target.shape)}.")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"target must hold integer class labels, got {target.dtype}.")
    if values_visible(target):
        low, high = _range(target)
        if (low < 0 or high >= classes) and ignore_index is not None:
            low, high = _range(target[target != ignore_index])
        if low < 0 or high >= classes:
            raise ValueError(
                f"target holds the label {low if low < 0 else high}; expected labels in [0, {classes})."
            )
    return target.long()


def _range(x: Tensor) -> tuple[int, int]:
    """Smallest and largest value; (0, 0) of nothing."""
    if x.numel() == 0:
        return 0, 0
    low, high = x.aminmax()
    return int(low), int(high)


def check_batch(
    logits: Tensor, target: Tensor, ignore_index: int = -100
) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]:
    """Both inputs checked: logits in at least float32, labels int64."""
    logits = check_logits(logits)
    return logits, check_labels(target, logits.shape[0], logits.shape[1], ignore_index)


def check_sequences(
    logits: Tensor, labels: Tensor, ignore_index: int = -100
) -> tuple[Float[Tensor, "batch time classes"], Int[Tensor, "batch time"]]:
    """As `check_batch`, for a label at every time of every sequence."""
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            "logits must have shape (batch, time, classes) and labels (batch, time), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    flat, y = check_batch(logits.flatten(0, 1), labels.flatten(), ignore_index)
    return flat.view(logits.shape), y.view(labels.shape)


def next_token_labels(
    labels: Int[Tensor, "batch time"], ignore_index: int = -100
) -> Int[Tensor, "batch time"]:
    """What the logits of a causal language model at each time predict: the label one later, and nothing at
    the end."""
    return torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def check_regression(
    output: Tensor, target: Tensor
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Output and target of a regression as two (batch,) tensors, in at least float32.

    Either may come as (batch, 1): they are matched here, because subtracting (batch,) from (batch, 1) would
    broadcast silently to (batch, batch). Raises ValueError for another rank or dtype, lengths that differ,
    an empty batch, or NaN.
    """
    columns = []
    for name, x in (("output", output), ("target", target)):
        if x.ndim not in (1, 2) or x.shape[1:].numel() != 1:
            raise ValueError(f"{name} must have shape (batch,) or (batch, 1), got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}.")
        x = x.reshape(-1)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if x.shape[0] != output.shape[0]:
            raise ValueError(
                f"target must have shape ({output.shape[0]},) to match the output, got {tuple(x.shape)}."
            )
        if x.shape[0] == 0:
            raise ValueError(
                f"{name} holds an empty batch, shape {tuple(x.shape)}; expected at least one row."
            )
        if values_visible(x) and bool(torch.isnan(x.detach().amin())):
            raise ValueError(f"{name} contains NaN; expected numbers.")
        columns.append(x)
    return columns[0], columns[1]


def check_features(features: Tensor, in_features: int | None = None) -> Tensor:
    """Return (batch, in_features) floating-point `features` unchanged.

    Raises ValueError for another shape, dtype or an empty batch. Unlike logits, features are not scanned
    for NaN: the loss that follows does it once.
    """
    if features.ndim != 2 or (in_features is not None and features.shape[1] != in_features):
        expected = in_features if in_features is not None else "features"
        raise ValueError(f"features must have shape (batch, {expected}), got {tuple(features.shape)}.")
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}.")
    if features.shape[0] == 0:
        raise ValueError(f"features hold an empty batch, shape {tuple(features.shape)}.")
    return features


def check_positive(**values: float) -> None:
    """Raise ValueError naming the first value that is not a positive number."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
