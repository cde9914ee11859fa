"""A valid call of layers: `layer(x)`, x as the layer that the part stands in for takes it."""

from __future__ import annotations

from torch import Tensor

from contract.samples import LAYERS, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    return {"norm": tokens, "mlp": tokens, "linear": rows, "conv": maps}[card.replaces](batch, normal, build)


def tokens(batch, normal, build) -> Sample:
    """Tokens (batch, tokens, dim)."""
    return sample(build, normal(batch, 5, LAYERS["norm"]["dim"]))


def rows(batch, normal, build) -> Sample:
    """Rows (batch, in_features)."""
    return sample(build, normal(batch, LAYERS["linear"]["in_features"]))


def maps(batch, normal, build) -> Sample:
    """Feature maps (batch, channels, h, w)."""
    x = normal(batch, LAYERS["conv"]["in_channels"], 6, 6)
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
