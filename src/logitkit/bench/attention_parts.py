"""Attention parts that cost less than what they stand in for: random windows, monomials of pairs; float32."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from logitkit.attention import softmax_attention, tensor_attention
from logitkit.attention.subsampled import random_windows, within_windows
from logitkit.bench.base import Arm, Arms, Case, Goal

PEERS = ()
NOTE = """\
Subsampled attention draws new windows in every call. The attention within them, torch's own kernel, takes
0.24 times as long as over the whole matrix, for an eighth of the products; the rest is bringing queries,
keys, values and results into the windows' order and back, once in each direction. The whole matrix is softmax
attention, forward and backward, 4 heads of 64. The monomials of tensor attention replace exp up to degree 6
for entries within 0.7; the dense form is attention over all 65,536 pairs."""


def _windows(n: int, windows: int, small: bool) -> Arms:
    n = 64 if small else n
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 4, n, 64, generator=g).requires_grad_() for _ in range(3))
    cotangent = torch.randn(4, 4, n, 64, generator=g)

    def backward(out: Tensor) -> None:
        q.grad = k.grad = v.grad = None
        out.backward(cotangent)

    run: dict[str, Arm] = {
        "whole matrix": lambda: backward(softmax_attention(q, k, v)),
        f"{windows} windows": lambda: backward(
            within_windows(softmax_attention, random_windows(n, windows), q, k, v)
        ),
    }
    return Arms(run, leaves=(q, k, v))


def _pairs(n: int, dim: int, bound: float, degree: int, small: bool) -> Arms:
    n = 16 if small else n
    g = torch.Generator().manual_seed(0)
    q, k1, k2 = (bound * (2 * torch.rand(1, n, dim, generator=g) - 1) for _ in range(3))
    v1, v2 = (torch.randn(1, n, dim, generator=g) for _ in range(2))
    dense = partial(tensor_attention, q, [k1, k2], [v1, v2])
    poly = partial(dense, method="poly", degree=degree)
    run: dict[str, Arm] = {"dense": dense, "chunked": partial(dense, method="chunked"), "monomials": poly}
    return Arms(run, values=lambda: {"largest error": float((poly() - dense()).abs().max())})


def cases() -> list[Case]:
    return [
        Case(
            "8 random windows, n=1024, forward and backward",
            partial(_windows, 1024, 8),
            [Goal("8 windows", 1 / 3, "whole matrix")],
        ),
        Case(
            "tensor attention, n=256, d=4, degree 6, forward",
            partial(_pairs, 256, 4, 0.7, 6),
            [Goal("monomials", 1 / 5, "dense"), Goal("largest error", 1e-3, unit="value")],
        ),
    ]
