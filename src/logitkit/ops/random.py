"""Random numbers that mean the same on every device and in every precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def draw_normal(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Standard normal float32 draws of `shape`, with the dtype and device of `like`.

    They come from `generator`, on its device, or from torch's global CPU generator.
    """
    where = generator.device if generator is not None else "cpu"
    return torch.randn(shape, generator=generator, device=where, dtype=torch.float32).to(like)


def draw_uniform(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Uniform [0, 1) float32 draws of `shape`, as `draw_normal`."""
    where = generator.device if generator is not None else "cpu"
    return torch.rand(shape, generator=generator, device=where, dtype=torch.float32).to(like)


def draw_gumbel(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    """Standard Gumbel draws, -log(-log u), all finite, as `draw_normal`."""
    u = draw_uniform(shape, torch.empty((), dtype=torch.float64, device=like.device), generator)
    return -torch.log(-torch.log(u.clamp(min=2.0**-25))).to(like)
