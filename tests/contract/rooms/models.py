"""A valid call of models: `model(x)`, on images or on tokens."""

from __future__ import annotations

import torch

from contract.samples import IMAGE, TOKENS, VOCABULARY, Sample, reads_tokens


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if reads_tokens(card):
        return tokens(batch, g, build, device)
    x = normal(batch, *IMAGE)
    bad = {
        "inputs of another shape": lambda p: p(x[:, :, :-1]),
        "integer inputs": lambda p: p(x.long()),
        "an empty batch": lambda p: p(x[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(x), bad)


def tokens(batch, g, build, device) -> Sample:
    x = torch.randint(0, VOCABULARY, (batch, TOKENS), generator=g).to(device)
    bad = {
        "tokens of another rank": lambda p: p(x[0]),
        "more tokens than the model reads": lambda p: p(torch.cat([x, x], dim=1)),
        "real numbers": lambda p: p(x.double()),
        "a token outside the vocabulary": lambda p: p(x + VOCABULARY),
        "an empty batch": lambda p: p(x[:0]),
    }
    return Sample(build, (x,), lambda part, x: part(x), bad)
