"""Training a network over 200,000 classes: top-1 against wall-clock, the spherical family beside softmaxes.

Classes are points on a sphere in 64 dimensions, inputs a class's point plus noise, classes drawn with
probability 1 / rank. A small network gives 128 features of length 1 and trains with Adam (0.001); the output
layer trains with plain SGD, at the rate that came out best of six on a short run of its own. Every method
gets the same wall-clock on the same data; evaluations are not counted. Top-1 is taken on 4,096 inputs drawn
as in training.

    python benchmarks/spherical_training.py [--method NAME]... [--seconds 60] [--tuning 5]

Results of earlier runs with other methods are kept in benchmarks/results/spherical_training.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.bench.run import machine
from logitkit.ops import SphericalOutput
from logitkit.ops.gemm import fast_products

CLASSES, DIMENSIONS, FEATURES, BATCH = 200_000, 64, 128, 128
NOISE = 0.1
RATES = (0.1, 0.5, 2.0, 10.0, 50.0, 250.0)
CHECKPOINTS = 12
PATH = Path(__file__).parent / "results" / "spherical_training.json"


class Problem:
    """Draws (inputs, labels)."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.centres = F.normalize(torch.randn(CLASSES, DIMENSIONS, generator=g))
        share = 1 / torch.arange(1, CLASSES + 1, dtype=torch.float64)
        self.share = share / share.sum()
        self.cumulative = self.share.cumsum(0)

    def labels(self, n: int, generator: torch.Generator) -> Tensor:
        draws = torch.rand(n, dtype=torch.float64, generator=generator)
        return torch.searchsorted(self.cumulative, draws).clamp(max=CLASSES - 1)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = self.labels(n, generator)
        return self.centres[y] + NOISE * torch.randn(n, DIMENSIONS, generator=generator), y


class Spherical:
    """The layer under test."""

    def __init__(self, loss: str, lr: float, problem: Problem) -> None:
        zeros = torch.zeros(CLASSES, FEATURES) if loss == "squared" else None
        self.layer, self.lr = SphericalOutput(FEATURES, CLASSES, loss, a=0.1, b=30.0, weight=zeros), lr

    def train(self, h: Tensor, y: Tensor) -> None:
        self.layer(h, y).backward()
        self.layer.step(self.lr)

    def predict(self, h: Tensor) -> Tensor:
        return self.layer.predict(h)[1][:, 0]


class Full:
    """Softmax over all classes, in place and on the fast products: what the method must beat."""

    def __init__(self, lr: float, problem: Problem) -> None:
        bound = FEATURES**-0.5
        self.weight, self.lr = torch.empty(CLASSES, FEATURES).uniform_(-bound, bound), lr
        self.room = torch.empty(BATCH, CLASSES)

    def train(self, h: Tensor, y: Tensor) -> None:
        x = h.detach()
        with fast_products():
            p = torch.mm(x, self.weight.T, out=self.room)
            torch._softmax(p, -1, False, out=p)
            p[torch.arange(len(y)), y] -= 1
            below = p @ self.weight / len(y)
            self.weight.addmm_(p.T, x, alpha=-self.lr / len(y))
        h.backward(below)

    def predict(self, h: Tensor) -> Tensor:
        with fast_products():
            return torch.cat([(part @ self.weight.T).argmax(1) for part in h.split(256)])


class Sampled(Full):
    """Softmax over the targets and 1,024 classes drawn in proportion to their frequency, corrected for it."""

    def __init__(self, lr: float, problem: Problem) -> None:
        super().__init__(lr, problem)
        self.problem, self.correction = problem, (1024 * problem.share).log().float()
        self.generator = torch.Generator().manual_seed(2)

    def train(self, h: Tensor, y: Tensor) -> None:
        x = h.detach()
        drawn = self.problem.labels(1024, self.generator)
        with fast_products():
            own, others = self.weight[y], self.weight[drawn]
            z = x @ others.T - self.correction[drawn]
            z.masked_fill_(drawn == y[:, None], -torch.inf)
            target = (x * own).sum(1, keepdim=True) - self.correction[y, None]
            p = torch.cat([target, z], 1).softmax(1) / len(y)
            first, rest = p[:, :1] - 1 / len(y), p[:, 1:]
            below = first * own + rest @ others
            self.weight.index_add_(0, y, first * x, alpha=-self.lr)
            self.weight.index_add_(0, drawn, rest.T @ x, alpha=-self.lr)
        h.backward(below)


class Adaptive:
    """torch's adaptive softmax; the classes already come in the order of their frequency."""

    def __init__(self, lr: float, problem: Problem) -> None:
        self.layer = nn.AdaptiveLogSoftmaxWithLoss(FEATURES, CLASSES, [2_000, 20_000])
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr)

    def train(self, h: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.layer(h, y).loss.backward()
        self.optimizer.step()

    def predict(self, h: Tensor) -> Tensor:
        return torch.cat([self.layer.predict(part) for part in h.split(256)])


METHODS: dict[str, Callable[[float, Problem], Spherical | Full | Adaptive]] = {
    "squared": lambda lr, problem: Spherical("squared", lr, problem),
    "taylor_softmax": lambda lr, problem: Spherical("taylor_softmax", lr, problem),
    "z_loss": lambda lr, problem: Spherical("z_loss", lr, problem),
    "sampled_softmax": Sampled,
    "adaptive_softmax": Adaptive,
    "full_softmax": Full,
}


def run(name: str, lr: float, problem: Problem, seconds: float, checkpoints: int) -> list[dict[str, float]]:
    """Train for `seconds`; the curve. A run whose numbers stop being finite ends early."""
    torch.manual_seed(0)
    test_x, test_y = problem.draw(4096, torch.Generator().manual_seed(1))
    below = nn.Sequential(nn.Linear(DIMENSIONS, 256), nn.ReLU(), nn.Linear(256, FEATURES))
    optimizer = torch.optim.Adam(below.parameters(), 1e-3)
    output = METHODS[name](lr, problem)
    generator = torch.Generator().manual_seed(3)
    curve: list[dict[str, float]] = []
    spent, steps = 0.0, 0
    for checkpoint in range(1, checkpoints + 1):
        started = time.perf_counter()
        while spent + time.perf_counter() - started < seconds * checkpoint / checkpoints:
            x, y = problem.draw(BATCH, generator)
            h = F.normalize(below(x))
            optimizer.zero_grad()
            try:
                output.train(h, y)
            except (RuntimeError, ValueError):
                return curve
            optimizer.step()
            steps += 1
        spent += time.perf_counter() - started
        with torch.no_grad():
            right = output.predict(F.normalize(below(test_x))) == test_y
        curve.append(
            {"seconds": round(spent, 2), "steps": steps, "top1": round(float(right.float().mean()), 4)}
        )
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description="Top-1 against wall-clock over 200,000 classes.")
    parser.add_argument("--method", action="append", choices=list(METHODS), default=None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tuning", type=float, default=5.0, help="seconds per learning rate")
    arguments = parser.parse_args()
    problem = Problem()
    results = json.loads(PATH.read_text()) if PATH.exists() else {"methods": {}}
    results |= {
        "benchmark": "spherical_training",
        "classes": CLASSES,
        "batch": BATCH,
        "features": FEATURES,
        "tuning_seconds_per_rate": arguments.tuning,
        "torch": torch.__version__,
        "machine": machine(),
    }
    for name in arguments.method or METHODS:
        tuning = {}
        for lr in RATES:
            curve = run(name, lr, problem, arguments.tuning, 1)
            tuning[str(lr)] = curve[-1]["top1"] if curve else None
        best = max(RATES, key=lambda lr: tuning[str(lr)] or -1.0)
        curve = run(name, best, problem, arguments.seconds, CHECKPOINTS)
        results["methods"][name] = {"tuning": tuning, "lr": best, "curve": curve}
        print(name, best, tuning, curve[-1], flush=True)
        PATH.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
