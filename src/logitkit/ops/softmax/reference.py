"""Softmax and its relatives over the last axis, in plain torch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def softmax(x: Float[Tensor, "*rows columns"], out: Float[Tensor, "*rows columns"] | None) -> Tensor:
    return torch.softmax(x, -1) if out is None else torch.softmax(x, -1, out=out)


def log_softmax(x: Float[Tensor, "*rows columns"], out: Float[Tensor, "*rows columns"] | None) -> Tensor:
    return torch.log_softmax(x, -1) if out is None else torch.log_softmax(x, -1, out=out)


def logsumexp(x: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows"]:
    return torch.logsumexp(x, -1)
