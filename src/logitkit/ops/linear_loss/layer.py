"""A linear layer and its input: what logits are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.checks import check_labels


@dataclass(frozen=True)
class Layer:
    """logits = softcap(features weight^T + bias), softcap(z) = c tanh(z / c), that need not exist."""

    features: Float[Tensor, "batch features"]
    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None = None
    softcap: float | None = None

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient is wanted for any of it."""
        parts = (self.features, self.weight, self.bias)
        return torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts)

    def rows(self, rows: Int[Tensor, " kept"]) -> Layer:
        """The same layer on some of the rows."""
        return replace(self, features=self.features[rows])


def checked(
    features: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None = None, name: str = ""
) -> Layer:
    """The layer for (..., d) features, as (batch, d), in autocast's dtype inside autocast.

    Raises ValueError for wrong shapes, dtypes that are not floating point or differ, an empty batch, fewer
    than 2 classes, a softcap that is not positive.
    """
    if weight.ndim != 2 or weight.shape[0] < 2:
        raise ValueError(
            f"{name}weight must have shape (classes, features) with at least 2 classes, got "
            f"{tuple(weight.shape)}."
        )
    if features.ndim < 1 or features.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}features must have shape (..., {weight.shape[1]}) to match {name}weight "
            f"{tuple(weight.shape)}, got {tuple(features.shape)}."
        )
    if features.numel() == 0:
        raise ValueError(f"{name}features hold an empty batch, shape {tuple(features.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, got {softcap}.")
    kind = features.device.type
    if torch.is_autocast_enabled(kind) and features.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    for what, x in (("weight", weight), ("bias", bias)):
        if not features.is_floating_point() or (x is not None and x.dtype != features.dtype):
            raise ValueError(
                f"{name}features and {name}{what} must share one floating-point dtype, got {features.dtype} "
                f"and {x.dtype if x is not None else None}."
            )
    return Layer(features.reshape(-1, features.shape[-1]), weight, bias, softcap)


def checked_labels(
    target: Tensor,
    shape: torch.Size,
    layer: Layer,
    token_weight: Tensor | None,
    ignore_index: int,
    classes: int | None = None,
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Labels, 0 where ignored, and how much each row counts in float64: its `token_weight`, 0 if ignored.

    classes: how many there are, where the layer has a part of them.

    Raises ValueError for shapes other than `shape`, or labels out of range.
    """
    if target.shape != shape:
        raise ValueError(
            f"target must have shape {tuple(shape)} to match the features, got {tuple(target.shape)}."
        )
    y = check_labels(target.reshape(-1), shape.numel(), classes or layer.weight.shape[0], ignore_index)
    kept = y != ignore_index
    counts = kept.double()
    if token_weight is not None:
        if token_weight.shape != shape:
            raise ValueError(
                f"token_weight must have shape {tuple(shape)} to match target, got "
                f"{tuple(token_weight.shape)}."
            )
        counts = token_weight.reshape(-1).double().where(kept, counts.new_zeros(()))
    return y.where(kept, y.new_zeros(())), counts


def checked_class_weight(weight: Tensor, classes: int) -> Float[Tensor, " classes"]:
    """The weight of each class, in float64; ValueError for another shape or one that asks for a gradient."""
    if weight.shape != (classes,) or weight.requires_grad:
        raise ValueError(
            f"class_weight must have shape ({classes},) and need no gradient, got {tuple(weight.shape)}"
            f"{' that needs one' if weight.requires_grad else ''}."
        )
    return weight.double()
