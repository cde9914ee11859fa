"""Blockwise attention with softmax, sigmoid, softplus and power weights; 4 heads of 64, float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import attention

PEERS = ()
NOTE = """\
SDPA is torch's scaled_dot_product_attention. The gain on a CPU is arithmetic: the products of a block
run in oneDNN, at twice the rate of the library that SDPA calls (on a CPU where oneDNN is no gain or not
float32, the softmax is SDPA itself), and a block of weights is made in one vectorised pass. Extra memory
grows with the tokens: it is the result, sums of gradients, and 4 MiB of blocks forward, 8 backward. The
forward pass at 2,048 tokens lies at 0.60 to 0.64, on the edge of its goal: half a block a row is wasted
on a causal diagonal, and calls after a pause start cold. At 512 tokens the softmax is SDPA itself, and
the ratio above 1 is thought to be the checks around it. Blocks of 256 rows and of 1 to 2 MiB were tried
and are slower."""

HEADS, DIM = 4, 64
Make = Callable[[Tensor, Tensor, Tensor], Tensor]


def _arms(n: int, causal: bool, backward: bool, masked: bool, small: bool) -> Arms:
    n = 272 if small else n
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM, generator=g).requires_grad_() for _ in range(3))
    cotangent = torch.randn(1, HEADS, n, DIM, generator=g)
    mask = None
    if masked:  # the last eighth is padding
        mask = (torch.arange(n) < n - n // 8)[None, None, None]

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)

    def ours(weight: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, weight=weight, attn_mask=mask, is_causal=causal)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.sigmoid(q @ k.transpose(-1, -2) / math.sqrt(DIM) - math.log(n))
        weights = weights.tril() if causal else weights
        return (weights if mask is None else weights * mask) @ v

    makes: dict[str, Make] = {"SDPA": sdpa}
    for weight in ("sigmoid", "softmax", "softplus", "power"):
        makes[weight] = partial(ours, weight)
    if n <= 2048:
        makes["naive sigmoid"] = naive

    def arm(make: Make) -> Arm:
        def forward() -> None:
            with torch.no_grad():
                make(q, k, v)

        def both() -> None:
            q.grad = k.grad = v.grad = None
            make(q, k, v).backward(cotangent)

        return both if backward else forward

    run = {name: arm(make) for name, make in makes.items()}

    def errors() -> dict[str, float]:
        rows = slice(n // 2, n // 2 + 8)
        exact = _exact_rows(q, k, v, rows, causal, mask)
        with torch.no_grad():
            got = ours("sigmoid", q, k, v)[..., rows, :]
        return {"error of the sigmoid": float((got - exact).abs().max() / exact.abs().max())}

    return Arms(run, leaves=(q, k, v) if backward else (), values=errors)


def _exact_rows(q: Tensor, k: Tensor, v: Tensor, rows: slice, causal: bool, mask: Tensor | None) -> Tensor:
    """Some rows of sigmoid attention in float64."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    n = q.shape[-2]
    weights = torch.sigmoid(q[..., rows, :] @ k.transpose(-1, -2) / math.sqrt(DIM) - math.log(n))
    if causal:
        weights = weights * (torch.arange(n) <= torch.arange(n)[rows, None])
    return (weights if mask is None else weights * mask) @ v


def cases() -> list[Case]:
    found = []
    for n in (512, 2048, 8192):
        for causal, masked in ((False, False), (True, False)) + (((False, True),) if n == 2048 else ()):
            for backward in (False, True):
                goals = [Goal("softmax", 1.0, "SDPA")]
                if n >= 2048:
                    goals.append(Goal("sigmoid", 0.67 if backward else 0.62, "SDPA"))
                kind = ", causal" if causal else ", padding mask" if masked else ""
                found.append(
                    Case(
                        f"n={n}{kind}, " + ("forward and backward" if backward else "forward"),
                        partial(_arms, n, causal, backward, masked),
                        goals,
                        memory=("SDPA", "sigmoid", "softmax")
                        if n >= 2048 and not masked and not causal
                        else (),
                        rounds=7 if n > 512 else 21,
                    )
                )
    return found
