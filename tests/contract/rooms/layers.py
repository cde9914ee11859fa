"""A valid call of layers: `layer(x)`, x as the layer that the part stands in for takes it."""

from __future__ import annotations

from torch import Tensor

from contract.samples import GRID, LAYERS, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    kinds = {
        "norm": tokens, "mlp": tokens, "norm+mlp": tokens, "mixer": grids, "linear": rows, "conv": maps,
        "block": blocks,
    }  # fmt: skip
    return kinds[card.replaces](batch, normal, build)


def tokens(batch, normal, build) -> Sample:
    """Tokens (batch, tokens, dim)."""
    return sample(build, normal(batch, 5, LAYERS["norm"]["dim"]))


def grids(batch, normal, build) -> Sample:
    """Tokens (batch, height * width, dim) of a grid."""
    return sample(build, normal(batch, GRID[0] * GRID[1], LAYERS["mixer"]["dim"]))


def rows(batch, normal, build) -> Sample:
    """Rows (batch, in_features)."""
    return sample(build, normal(batch, LAYERS["linear"]["in_features"]))


def maps(batch, normal, build) -> Sample:
    """Feature maps (batch, channels, h, w)."""
    return images(build, normal(batch, LAYERS["conv"]["in_channels"], 6, 6))


def blocks(batch, normal, build) -> Sample:
    """Feature maps (batch, channels, h, w) to the same."""
    return images(build, normal(batch, LAYERS["block"]["channels"], 6, 6))


def images(build, x: Tensor) -> Sample:
    """A call on maps."""
    found = sample(build, x, wide=x[:, :-1])
    found.bad["maps of another rank"] = lambda p: p(x[:, 0])
    return found


def sample(build, x: Tensor, wide: Tensor | None = None) -> Sample:
    """A call on `x`; `wide` has another width."""
    bad = {
        "inputs of another width": lambda p: p(x[..., :-1] if wide is None else wide),
        "integer inputs": lambda p: p(x.long()),
        "an empty batch": lambda p: p(x[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(x), bad)
