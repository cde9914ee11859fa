"""The soft top-k of 1,000 x 100,000 scores and its gradient"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import soft_topk

PEERS: tuple[str, ...] = ()
NOTE = """\
The sorting-based form sorts each row, brackets the threshold between the k-th and the next score (Amos,
Koltun and Kolter, arXiv:1906.08707), and narrows the bracket in torch. The bisection starts from the largest
and smallest score and needs no order. Ours runs Newton's method on one row after the other while the row is
in the cache, so that the scores are read from memory once. The limit reads and writes them once."""


def _sorting(s: Tensor, k: int, g: Tensor) -> Tensor:
    """Weights from a sort and 30 bisections, and their gradient."""
    ordered = s.sort(1, descending=True).values
    low, high = -ordered[:, k - 1] - 12, -ordered[:, k] + 12
    return _narrow(s, k, g, low, high, 30)


def _bisection(s: Tensor, k: int, g: Tensor) -> Tensor:
    return _narrow(s, k, g, -s.amax(1) - 12, -s.amin(1) + 12, 32)


def _narrow(s: Tensor, k: int, g: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        t = (low + high) / 2
        short = torch.sigmoid(s + t[:, None]).sum(1) < k
        low, high = torch.where(short, t, low), torch.where(short, high, t)
    y = torch.sigmoid(s + ((low + high) / 2)[:, None])
    v = y * (1 - y)
    v.mul_(g - (v * g).sum(1, keepdim=True) / v.sum(1, keepdim=True))
    return y


def _arms(small: bool) -> Arms:
    rows, n, k = (20, 500, 10) if small else (1000, 100_000, 100)
    generator = torch.Generator().manual_seed(0)
    s = (3 * torch.randn(rows, n, generator=generator)).requires_grad_()
    g = torch.randn(rows, n, generator=generator)

    def ours() -> None:
        s.grad = None
        soft_topk(s, k).backward(g)

    def forward() -> Tensor:
        with torch.no_grad():
            return soft_topk(s, k)

    plain = s.detach()
    run: dict[str, Arm] = {
        "ours": ours,
        "ours, forward": forward,
        "sorting-based": lambda: _sorting(plain, k, g),
        "bisection": lambda: _bisection(plain, k, g),
        "limit: copy": plain.clone,
    }

    def values() -> Mapping[str, float]:
        few = plain[:4].double()
        exact = soft_topk(few, k)
        return {
            "error, ours": float((soft_topk(plain[:4], k) - exact).abs().max()),
            "error, sorting-based": float((_sorting(plain[:4], k, g[:4]) - exact).abs().max()),
        }

    return Arms(run, [s], values)


def cases() -> list[Case]:
    goals = [Goal("ours", 0.3, "sorting-based"), Goal("error, ours", 1e-6, unit="value")]
    return [Case("float32, k = 100", _arms, goals)]
