"""Softmax of long rows in float32"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import scipy.special
import torch
from torch import Tensor

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import softmax
from logitkit.ops.softmax import cpu

PEERS = ("scipy", "numpy")
NOTE = """\
torch runs a row on one thread and adds it up in float32: slow, and wrong in the third digit on a row of
2^24. "ours" and "torch" write into fresh memory, the arms with `out=` into memory that is there; on virtual
machines the difference between the two is the price of page faults, not of arithmetic. Two-pass, online and
three-pass are ours on the same kernels. Rows that are many or short go to torch, which is at the machine's
limit there: both arms run the same function, and differ by the call around it."""


def _arms(small: bool, rows: int, columns: int) -> Arms:
    columns = min(columns, 1 << 18) if small else columns
    x = 4 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    y = torch.empty_like(x)
    a, b = x.numpy(), y.numpy()

    def numpy_three_pass() -> None:
        np.subtract(a, a.max(-1, keepdims=True), out=b)
        np.exp(b, out=b)
        np.divide(b, b.sum(-1, keepdims=True), out=b)

    run: dict[str, Arm] = {
        "ours": lambda: softmax(x),
        "ours, out=": lambda: softmax(x, out=y),
        "torch": lambda: torch.softmax(x, -1),
        "torch, out=": lambda: torch._softmax(x, -1, False, out=y),
        "scipy": lambda: scipy.special.softmax(a, axis=-1),
        "numpy, out=": numpy_three_pass,
        "limit: copy + sum": lambda: (y.copy_(x), x.sum()),
    }
    if rows == 1:
        run |= {
            "two-pass": lambda: cpu.two_pass(a, b),
            "online": lambda: cpu.online(a, b),
            "three-pass": lambda: cpu.three_pass(a, b),
        }

    def values() -> Mapping[str, float]:
        exact = x[:1].double().softmax(-1)
        found: dict[str, Tensor] = {"ours": softmax(x[:1]), "torch": torch.softmax(x[:1], -1)}
        return {f"relative error, {n}": float(((p - exact) / exact).abs().max()) for n, p in found.items()}

    return Arms(run, values=values)


def cases() -> list[Case]:
    one_row = [
        Goal("ours, out=", 0.5, "torch, out="),
        Goal("ours, out=", 0.2, "torch"),
        Goal("two-pass", 0.85, "three-pass"),
        Goal("relative error, ours", 1e-6, unit="value"),
    ]
    return [
        Case(f"one row of 2^{k}", partial(_arms, rows=1, columns=1 << k), one_row, rounds=9) for k in (24, 26)
    ] + [
        Case(
            "16,384 rows of 4,096",
            partial(_arms, rows=1 << 14, columns=1 << 12),
            [Goal("ours, out=", 1.0, "torch, out=")],
        )
    ]
