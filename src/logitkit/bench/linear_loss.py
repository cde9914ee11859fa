"""Other losses on a linear layer, forward and backward, without the matrix of logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import (
    comp_sum,
    linear_comp_sum,
    linear_cross_entropy,
    linear_distillation,
    linear_ldr,
    linear_nkd,
)
from logitkit.ops.gemm import fast_products

PEERS = ()
NOTE = """\
Comp-sum and LDR differ from cross-entropy by a function of three numbers per row. Distillation multiplies
the teacher's features too: four products where cross-entropy has three, so that 1.1 times its time is out of
reach, and 4/3 the least there is."""


def _arms(small: bool) -> Arms:
    n, d, classes = (640, 16, 2048) if small else (2048, 512, 32_768)
    g = torch.Generator().manual_seed(0)
    x, t = (torch.randn(n, d, generator=g) for _ in range(2))
    w, tw = (torch.randn(classes, d, generator=g) * d**-0.5 for _ in range(2))
    y = torch.randint(classes, (n,), generator=g)
    x.requires_grad_()
    w.requires_grad_()

    def full_ldr() -> Tensor:
        z = x @ w.T
        gap = (z + 0.1).scatter(1, y[:, None], z.gather(1, y[:, None])) - z.gather(1, y[:, None])
        return 2.0 * (torch.logsumexp(gap / 2.0, 1) - math.log(classes)).mean()

    def full_comp_sum() -> Tensor:
        return comp_sum(F.log_softmax(x @ w.T, 1).gather(1, y[:, None]), 1.7).mean()

    def full_distillation() -> Tensor:
        with torch.no_grad():
            teacher = F.log_softmax(t @ tw.T / 2, 1)
        return 4 * F.kl_div(F.log_softmax(x @ w.T / 2, 1), teacher, reduction="batchmean", log_target=True)

    def run(loss: Callable[[], Tensor]) -> Arm:
        def arm() -> None:
            x.grad = w.grad = None
            loss().backward()

        return arm

    a, b = x.detach(), w.detach()
    logits, gx, gw = torch.empty(n, classes), torch.empty_like(a), torch.empty_like(b)

    def four_products() -> None:
        with fast_products():
            torch.mm(t, tw.T, out=logits)
            torch.mm(a, b.T, out=logits)
            torch.mm(logits, b, out=gx)
            torch.mm(logits.T, a, out=gw)

    arms = {
        "cross-entropy": run(lambda: linear_cross_entropy(x, w, y)),
        "comp-sum": run(lambda: linear_comp_sum(x, w, y, tau=1.7)),
        "LDR": run(lambda: linear_ldr(x, w, y, lam=2.0, margin=0.1)),
        "distillation": run(lambda: linear_distillation(x, w, t, tw, temperature=2.0)),
        "NKD": run(lambda: linear_nkd(x, w, t, tw, y)),
        "comp-sum, full logits": run(full_comp_sum),
        "LDR, full logits": run(full_ldr),
        "distillation, full logits": run(full_distillation),
        "4 products": four_products,
    }
    return Arms(arms, leaves=(w, x))


def cases() -> list[Case]:
    goals = [
        Goal("comp-sum", 1.1, "cross-entropy"),
        Goal("LDR", 1.1, "cross-entropy"),
        Goal("distillation", 1.1, "cross-entropy"),
        Goal("NKD", 1.1, "cross-entropy"),
        *(Goal(arm, 64, unit="MiB") for arm in ("comp-sum", "LDR", "distillation")),
    ]
    memory = ["comp-sum", "LDR", "distillation", "distillation, full logits"]
    return [Case("float32, N=2048, d=512, V=32768", _arms, goals, memory, rounds=7)]
