"""Products of matrices of signs, from float32 matrices, packing included"""

from __future__ import annotations

from collections.abc import Callable

import torch

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import binary_matmul, pack_signs

PEERS: tuple[str, ...] = ()
NOTE = """\
Ours starts from two float32 matrices; "weights packed" has the second packed beforehand, "both packed" both.
bfloat16 and int8 start from matrices that were converted beforehand, so their times leave that out. A core
that starts one 512-bit xor, popcount and addition per cycle does about 4,000 Gop/s; at 4096^3 the packed
product runs at 85 % of that on two cores. The figures to reach are set at 4096^3. At 1024^3 half the time is
reading 8 MiB of float32 that other arms have pushed out of the cache, and starting threads: 0.1x of float32
and 0.7x of int8."""


def _arms(size: int) -> Callable[[bool], Arms]:
    def build(small: bool) -> Arms:
        n = 64 if small else size
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(n, n, generator=generator) for _ in range(2))
        packed_a, packed_b = pack_signs(a), pack_signs(b)
        signs = [torch.where(x < 0, -1.0, 1.0) for x in (a, b)]
        halves = [x.bfloat16() for x in signs]
        bytes_ = [x.to(torch.int8) for x in signs]
        run: dict[str, Arm] = {
            "ours": lambda: binary_matmul(a, b),
            "ours, weights packed": lambda: binary_matmul(a, packed_b),
            "ours, both packed": lambda: binary_matmul(packed_a, packed_b),
            "packing one": lambda: pack_signs(a),
            "torch float32": lambda: signs[0] @ signs[1].T,
            "torch bfloat16": lambda: halves[0] @ halves[1].T,
            "torch._int_mm": lambda: torch._int_mm(bytes_[0], bytes_[1].T),
        }

        def values() -> dict[str, float]:
            return {"error, ours": float((binary_matmul(a, b) - signs[0] @ signs[1].T).abs().max())}

        return Arms(run, values=values)

    return build


def cases() -> list[Case]:
    goals = [
        Goal("ours", 0.05, "torch float32"),
        Goal("ours", 0.4, "torch._int_mm"),
        Goal("error, ours", 0.0, unit="value"),
    ]
    return [Case("1024^3", _arms(1024), goals[-1:]), Case("4096^3", _arms(4096), goals)]
