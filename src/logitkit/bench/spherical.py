"""An output layer over 800,000 classes: exact steps of the spherical family beside a full softmax."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.ops import SphericalOutput

PEERS = ()
NOTE = """\
200 steps, folds included, against one full softmax step that reuses its room. The Z-loss needs no folds
here and is beyond 200 times at both widths. The squared error, at a tenth of the largest stable rate, is at
196 times with 128 features and at 145 with 512: some 9 ms of its 12 are the step itself, mostly float64
products of 128 x 512 with 512 x 512, the rest folds. The time of a median step does not depend on the
classes; the mean over that at 10,000 classes includes full folds, which do. Making Q anew every 8,192 steps
is not in the 1,600 steps of a case; it costs one product of classes x features^2 in float64. Sampled and
adaptive softmax do not compute the exact step over all classes."""

CLASSES, FEW, BATCH, STEPS = 800_000, 10_000, 128, 200
# Of the largest rate at which plain SGD on the squared error is stable.
SHARE = 0.1


class _Data:
    """Batches of features after a ReLU, whose strong mean is what makes the shared factor ill-conditioned."""

    def __init__(self, d: int, classes: int) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.relu(torch.randn(32 * BATCH, d, generator=g) @ torch.randn(d, d, generator=g) * d**-0.5)
        self.largest = float(torch.linalg.eigvalsh((x.T @ x).double() / len(x))[-1])
        self.features = x.split(BATCH)
        self.targets = torch.randint(classes, (4096, BATCH), generator=g)
        self.taken = 0

    def next(self) -> tuple[Tensor, Tensor]:
        self.taken += 1
        return self.features[self.taken % 32], self.targets[self.taken % 4096]


class _Counted(SphericalOutput):
    """The layer, with a count of its folds."""

    small = full = 0

    def _fold(self) -> None:
        self.small += 1
        super()._fold()

    def _fold_all(self) -> None:
        self.full += 1
        super()._fold_all()


def _ours(layer: SphericalOutput, data: _Data, lr: float, steps: int) -> None:
    for _ in range(steps):
        h, y = data.next()
        layer(h.requires_grad_(), y).backward()
        layer.step(lr)
        h.grad = None


def _full(weight: Tensor, room: Tensor, data: _Data) -> Tensor:
    """A full-softmax SGD step in place; returns the features' gradient."""
    h, y = data.next()
    h = h.detach()
    z = torch.mm(h, weight.T, out=room)
    p = torch._softmax(z, -1, False, out=z)
    p[torch.arange(len(y)), y] -= 1
    below = p @ weight
    weight.addmm_(p.T, h, alpha=-1e-3)
    return below


def _sampled(weight: Tensor, data: _Data, negatives: int = 1024) -> Tensor:
    """A step of softmax over the targets and 1,024 uniform negatives."""
    h, y = data.next()
    h = h.detach()
    rows = torch.cat([y, torch.randint(len(weight), (negatives,))])
    some = weight[rows]
    z = h @ some.T
    z.masked_fill_((rows == y[:, None]) & ~torch.eye(len(y), len(rows), dtype=torch.bool), -torch.inf)
    p = z.softmax(1)
    p.diagonal().sub_(1)
    below = p @ some
    weight.index_add_(0, rows, p.T @ h, alpha=-1e-3)
    return below


def _adaptive(layer: nn.AdaptiveLogSoftmaxWithLoss, optimizer: torch.optim.Optimizer, data: _Data) -> None:
    h, y = data.next()
    optimizer.zero_grad()
    layer(h.requires_grad_(), y).loss.backward()
    optimizer.step()
    h.grad = None


def _arms(d: int, loss: str, small: bool) -> Arms:
    classes, few, steps = (1000, 100, 3) if small else (CLASSES, FEW, STEPS)
    data, own = _Data(d, classes), _Data(d, classes)
    lr = SHARE / data.largest if loss == "squared" else 10.0
    layer = _Counted(d, classes, loss, a=0.1, b=30.0)
    weight = layer.weight()
    room = torch.empty(BATCH, classes)
    run: dict[str, Arm] = {
        "ours, 200 steps": partial(_ours, layer, own, lr, steps),
        "full softmax": partial(_full, weight, room, data),
    }
    if loss == "squared":
        adaptive = nn.AdaptiveLogSoftmaxWithLoss(d, classes, [classes // 80, classes // 8])
        optimizer = torch.optim.SGD(adaptive.parameters(), 1e-3)
        run["sampled softmax, 1,024"] = partial(_sampled, weight, data)
        run["AdaptiveLogSoftmaxWithLoss"] = partial(_adaptive, adaptive, optimizer, data)

    def values() -> Mapping[str, float]:
        made = own.taken / 1000
        counts = {
            "small folds per 1,000 steps": (layer.small - layer.full) / made,
            "full folds per 1,000 steps": layer.full / made,
        }
        data_few = _Data(d, few)
        pairs = [(layer, own), (_Counted(d, few, loss, a=0.1, b=30.0), data_few)]
        times: list[list[float]] = [[], []]
        for _ in range(steps):
            for (each, its), seconds in zip(pairs, times, strict=True):
                started = time.perf_counter()
                _ours(each, its, lr, 1)
                seconds.append(time.perf_counter() - started)
        many, fewer = times
        return counts | {
            "median step, ms": 1e3 * statistics.median(many),
            "median step, over that at 10,000 classes": statistics.median(many) / statistics.median(fewer),
            "mean step, over that at 10,000 classes": statistics.mean(many) / statistics.mean(fewer),
        }

    return Arms(run, values=values)


def cases() -> list[Case]:
    return [
        Case(
            f"{CLASSES:,} classes, {d} features, batch {BATCH}, {loss}",
            partial(_arms, d, loss),
            [
                # 200 steps in the time of one: 0.005x each.
                Goal("ours, 200 steps", 1.0, "full softmax"),
                Goal("median step, over that at 10,000 classes", 1.2, unit="value"),
            ],
        )
        for d in (128, 512)
        for loss in ("squared", "z_loss")
    ]
