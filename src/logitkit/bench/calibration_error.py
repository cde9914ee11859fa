"""Expected calibration error of 100,000 x 100 predictions, 15 bins"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from logitkit.bench.base import Arm, Arms, Case, Goal, peer
from logitkit.ops import calibration_error, use

PEERS = ("torchmetrics", "netcal")
NOTE = """\
One reading of the scores finds the largest of each row, whether it is the label's, and its bin. torch's `max`
along the rows alone, which every torch form of this needs, takes longer. torchmetrics puts a confidence of
exactly 1 into a bin of its own."""


def _arms(small: bool) -> Arms:
    n, classes = (2000, 10) if small else (100_000, 100)
    g = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=g)
    logits = torch.randn(n, classes, generator=g)
    logits[torch.arange(n), y] += 2.0
    logits *= 2.5
    p = logits.softmax(1)

    def reference() -> float:
        with use("reference"):
            return calibration_error(p, y)

    def torchmetrics(x: torch.Tensor) -> float:
        return float(multiclass_calibration_error(x, y, classes, n_bins=15))

    run: dict[str, Arm] = {
        "ours": lambda: calibration_error(p, y),
        "ours, logits": lambda: calibration_error(logits, y, from_logits=True),
        "ours, plain torch": reference,
        "torchmetrics": lambda: torchmetrics(p),
        "torchmetrics, logits": lambda: torchmetrics(logits),
        "torch's max alone": lambda: p.max(1),
        "limit: sum": lambda: p.sum(),
    }
    netcal = peer("netcal.metrics")
    if netcal:
        run["netcal"] = lambda: netcal.ECE(15).measure(p.numpy(), y.numpy())

    def values() -> Mapping[str, float]:
        return {
            "error, ours": calibration_error(p, y),
            "error, ours, logits": calibration_error(logits, y, from_logits=True),
            "error, torchmetrics": torchmetrics(p),
        }

    return Arms(run, values=values)


def cases() -> list[Case]:
    goals = [Goal("ours", 0.17, "torchmetrics"), Goal("ours, logits", 0.17, "torchmetrics, logits")]
    return [Case("float32", _arms, goals, rounds=15)]
