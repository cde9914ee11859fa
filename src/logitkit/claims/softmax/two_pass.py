"""007: how often the two-pass softmax touches memory, beside the two forms with a pass for the maximum.

The algorithms run on a memory that counts what is read and written, a block at a time as a kernel with a
cache would. The number depends on nothing random, so one seed is run. Time is a benchmark's business:
`logitkit bench softmax` has two-pass over three-pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitkit.claims.base import Check, Trial, claim, over_seeds
from logitkit.softmax import TwoPassState

N, BLOCK = 2**16, 2**12


@claim(
    "softmax",
    "two_pass",
    statement="The two-pass softmax reads its scores twice and writes once, 3 N accesses where the three-pass"
    " forms have 4 N and 5 N, with the accuracy of float32.",
    seeds=range(1),
)
def two_pass(trial: Trial) -> list[Check]:
    reads: dict[str, list[float]] = {}
    writes: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for seed in trial.seeds:
        x = 5 * torch.randn(N, generator=torch.Generator().manual_seed(seed))
        exact = x.double().softmax(0)
        for name, algorithm in ALGORITHMS.items():
            memory = Memory(x)
            algorithm(memory)
            reads.setdefault(name, []).append(memory.reads / N)
            writes.setdefault(name, []).append(memory.writes / N)
            wrong = ((memory.y.double() - exact) / exact).abs().max().item()
            errors.setdefault(name, []).append(wrong)

    def exactly(what: str, counted: dict[str, list[float]], name: str, times: float) -> Check:
        values = [abs(count - times) for count in counted[name]]
        return over_seeds(f"{what} of {name} per score, away from {times:g}", values, "<=", 0.0, counted)

    return [
        exactly("reads", reads, "two-pass", 2),
        exactly("writes", writes, "two-pass", 1),
        exactly("reads", reads, "three-pass, recomputing", 3),
        exactly("writes", writes, "three-pass, recomputing", 1),
        exactly("reads", reads, "three-pass, reloading", 3),
        exactly("writes", writes, "three-pass, reloading", 2),
        over_seeds("largest relative error of two-pass", errors["two-pass"], "<=", 1e-6, errors),
    ]


class Memory:
    """Scores x and room for the weights y, in blocks; counts the numbers that are read and written."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.y = x, torch.zeros_like(x)
        self.reads = self.writes = 0

    def blocks(self) -> list[slice]:
        return [slice(a, a + BLOCK) for a in range(0, len(self.x), BLOCK)]

    def read(self, where: Tensor, block: slice) -> Tensor:
        self.reads += len(where[block])
        return where[block].clone()

    def write(self, block: slice, values: Tensor) -> None:
        self.writes += len(values)
        self.y[block] = values


def in_two_passes(memory: Memory) -> None:
    state = TwoPassState()
    for block in memory.blocks():
        state.update(memory.read(memory.x, block))
    for block in memory.blocks():
        memory.write(block, state.weights(memory.read(memory.x, block)))


def largest(memory: Memory) -> Tensor:
    return torch.stack([memory.read(memory.x, block).max() for block in memory.blocks()]).max()


def recomputing(memory: Memory) -> None:
    top = largest(memory)
    total = sum((memory.read(memory.x, block) - top).exp().sum() for block in memory.blocks())
    for block in memory.blocks():
        memory.write(block, (memory.read(memory.x, block) - top).exp() / total)


def reloading(memory: Memory) -> None:
    top, total = largest(memory), torch.zeros(())
    for block in memory.blocks():
        e = (memory.read(memory.x, block) - top).exp()
        total = total + e.sum()
        memory.write(block, e)
    for block in memory.blocks():
        memory.write(block, memory.read(memory.y, block) / total)


ALGORITHMS = {
    "two-pass": in_two_passes,
    "three-pass, recomputing": recomputing,
    "three-pass, reloading": reloading,
}
