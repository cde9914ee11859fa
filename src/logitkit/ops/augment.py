"""Views: random copies of inputs that mean the same."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.random import draw_normal, draw_uniform


def random_views(
    x: Float[Tensor, " batch *input"], count: int, generator: torch.Generator | None = None
) -> Float[Tensor, " views batch *input"]:
    """`count` views of every input: times a gain that is uniform in [0.7, 1.3], plus normal noise of standard
    deviation 0.15; images (batch, channels, height, width) are first moved by up to an eighth of their sides,
    at least a pixel, in either direction, and what comes in repeats the edge.

    x: floating point, standardised, or pixels in [0, 1]. Draws come from `generator` or from torch's global
    one, and are the same on every device.

    Raises: ValueError for inputs of another dtype or an empty batch.
    """
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            "views are made of floating point inputs (batch, ...), not empty, got"
            f" {tuple(x.shape)} of {x.dtype}."
        )
    views = x.expand(count, *x.shape).flatten(0, 1)
    if x.ndim == 4:
        views = _moved(views, generator)
    gain = 0.7 + 0.6 * draw_uniform((len(views), *[1] * (x.ndim - 1)), x, generator)
    return (gain * views + 0.15 * draw_normal(views.shape, x, generator)).unflatten(0, (count, len(x)))


def _moved(x: Float[Tensor, "n c h w"], generator: torch.Generator | None) -> Float[Tensor, "n c h w"]:
    reach = [max(1, side // 8) for side in x.shape[2:]]
    wide = F.pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    offset = draw_uniform((2, len(x), 1), torch.empty((), device=x.device), generator)
    row, column = (
        (offset[k] * (2 * reach[k] + 1)).long() + torch.arange(side, device=x.device)
        for k, side in enumerate(x.shape[2:])
    )
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return wide[each, :, row[:, :, None], column[:, None, :]].movedim(-1, 1)
