"""Inputs that look like the test inputs but belong to no class."""

from __future__ import annotations

import torch
from torch import Tensor

from logitkit.data.base import seeded


def out_of_distribution(test: Tensor, train: Tensor, seed: int) -> Tensor:
    """As many out-of-distribution inputs as `test` has rows, in the same shape and dtype.

    test, train: inputs as `Preprocessor.transform` returns them.

    Vectors, tables and tokens: each column of `test` is permuted independently of the others, which keeps
    every column's distribution and destroys how columns go together (and with it one-hot groups of a
    table). Where columns are independent to begin with, the result is in-distribution.
    Images: one third is uniform noise between the smallest and largest training value of each channel,
    one third is inverted (low + high - x), and one third has its pixels permuted, each image in its own
    way; a remainder goes to the first kinds.
    """
    generator = seeded(seed, "out of distribution")
    if test.dim() != 4:
        order = torch.rand(test.shape, generator=generator).argsort(dim=0)
        return test.gather(0, order)
    low, high = (bound(train, (0, 2, 3)).view(-1, 1, 1) for bound in (torch.amin, torch.amax))
    noise, inverted, permuted = test.tensor_split(3)
    uniform = low + (high - low) * torch.rand(noise.shape, generator=generator)
    pixels = torch.rand(len(permuted), 1, test[0, 0].numel(), generator=generator).argsort(dim=-1)
    flat = permuted.flatten(2)
    shuffled = flat.gather(2, pixels.expand_as(flat)).view_as(permuted)
    return torch.cat([uniform, low + high - inverted, shuffled])
