"""Linear attention, elu + 1 features; 4 heads of 64, float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.bench.measure import interleave
from logitkit.ops import linear_attention, use

PEERS = ()
NOTE = """\
"naive" is the formula in torch, elu(x) + 1 included, as it is for ours. Features are made in long pieces that
the products then find in the cache, in memory that each thread keeps. flash-linear-attention runs on GPUs
only. The non-causal forward pass of 2,048 tokens takes 1 to 2 ms, of which starting its passes is a good
part: there 0.45 of naive is not reached. The exponent is the slope of log time between 2,048 and 8,192
tokens."""

HEADS, DIM = 4, 64
Make = Callable[[Tensor, Tensor, Tensor], Tensor]


def _inputs(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, n, DIM, generator=g).requires_grad_() for _ in range(3)]


def _naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2))


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = (q @ k.transpose(-1, -2)).tril()
    return weights @ v / weights.sum(-1, keepdim=True)


def _ours(causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = linear_attention(q, k, v, is_causal=causal)
    assert isinstance(out, Tensor)
    return out


def _reference(causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with use("reference"):
        return _ours(causal, q, k, v)


def _arm(make: Make, inputs: list[Tensor], backward: bool) -> Arm:
    cotangent = torch.ones_like(inputs[2])

    def forward() -> None:
        with torch.no_grad():
            make(*inputs)

    def both() -> None:
        for x in inputs:
            x.grad = None
        make(*inputs).backward(cotangent)

    return both if backward else forward


def _arms(n: int, causal: bool, backward: bool, small: bool) -> Arms:
    inputs = _inputs(64 if small else n)
    ours = partial(_ours, causal)
    makes: dict[str, Make] = {
        "ours": ours,
        "plain torch, chunked": partial(_reference, causal),
    }
    if causal:
        makes["SDPA"] = partial(F.scaled_dot_product_attention, is_causal=True)
    else:
        makes["naive"] = _naive
    if causal and n <= 2048:
        makes["dense"] = _dense

    def values() -> dict[str, float]:
        few = [x[:, :1, :1024] for x in inputs]
        exact = (_dense if causal else _naive)(*(x.double() for x in few))
        found = {"error": float((ours(*few) - exact).detach().abs().max() / exact.detach().abs().max())}
        if n == 8192:
            lengths = (64, 256) if small else (2048, 8192)
            arms = {length: _arm(ours, _inputs(length), backward) for length in lengths}
            few_tokens, many = interleave(
                {str(length): arm for length, arm in arms.items()}, 1 if small else 15
            ).medians()
            found["exponent"] = math.log(many / few_tokens) / math.log(lengths[1] / lengths[0])
        return found

    run = {name: _arm(make, inputs, backward) for name, make in makes.items()}
    return Arms(run, leaves=inputs if backward else (), values=values)


def cases() -> list[Case]:
    found = []
    for n in (2048, 8192):
        for causal in (False, True):
            for backward in (False, True):
                goals = []
                if n == 8192:
                    goals.append(Goal("exponent", 1.1, unit="value"))
                    if causal:
                        goals.append(Goal("ours", 0.1, "SDPA"))
                if not causal and not backward:
                    goals.append(Goal("ours", 0.45, "naive"))
                found.append(
                    Case(
                        f"n={n}"
                        + (", causal" if causal else "")
                        + (", forward and backward" if backward else ", forward"),
                        partial(_arms, n, causal, backward),
                        goals,
                        memory=("ours", "SDPA") if causal else ("ours", "naive"),
                    )
                )
    return found
