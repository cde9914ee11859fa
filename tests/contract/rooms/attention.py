"""A valid call of attention modules: `part(tokens)` attends from every token to every token."""

from __future__ import annotations

from contract.samples import FEATURES, GRID, Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    x = normal(batch, GRID[0] * GRID[1], FEATURES)
    bad = {
        "tokens of another width": lambda p: p(x[..., :-1]),
        "a single sequence without its batch": lambda p: p(x[0]),
        "integer tokens": lambda p: p(x.long()),
        "no tokens": lambda p: p(x[:, :0]),
        "an empty batch": lambda p: p(x[:0]),
        "NaN": lambda p: p(x * float("nan")),
        "heads that do not divide the width": lambda p: type(p)(FEATURES, 3),
    }
    if "mask" in card.build.takes:
        bad["a mask of another shape"] = lambda p: p(x, attn_mask=x[0, :-1, :2] > 0)
    if "padding" in card.build.takes:
        bad["padding of another shape"] = lambda p: p(x, key_padding_mask=x[:, :-1, 0] > 0)
    return Sample(build, (x,), lambda part, x: part(x)[0], bad)
