"""080: a small network with few labels learns more from a teacher by NKD than without, or by soft labels.

Set beforehand: digits, 150 labelled training images, a teacher with two layers of 256 trained on 1000, a
student of width 32, noise 0.2, 1500 steps, seeds 0-5, both thresholds.
Left open, and chosen before the first run:
- The student has two layers of 32. It learns from the first 150 of the 1000 training images of the teacher.
- Noise is Gaussian, of standard deviation 0.2 on pixels from 0 to 1, drawn anew in every step; teacher and
  student see the same noisy image. Test images have none.
- AdamW at 1e-3 with a cosine schedule and batches of 64, for the teacher too, which learns by cross-entropy.
  Students of a seed start from the same weights and see the same batches. Distillation is added to
  cross-entropy with weight 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference
from logitkit.data.base import seeded
from logitkit.distill import DistillationLoss, KDLoss, NKDLoss
from logitkit.models import MLP

TEACHERS, STUDENTS = 1000, 150
NOISE, BATCH, STEPS = 0.2, 64, 1500


@claim(
    "distill",
    "nkd",
    statement="With 150 labelled digits, a small network that NKD lets learn from a teacher of 1000 is 2"
    " points better than one without, and as good as one that learns soft labels.",
    seeds=range(6),
)
def nkd(trial: Trial) -> list[Check]:
    arms: dict[str, DistillationLoss | None] = {
        "nkd": NKDLoss(), "ce": None, "nkd_tau_2": NKDLoss(temperature=2.0), "kd": KDLoss(temperature=4.0),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in (*arms, "teacher")}
    for seed in trial.seeds:
        split = data.split(data.load("digits"), seed)
        assert isinstance(split.train.x, Tensor)
        assert isinstance(split.test.x, Tensor)
        x, y, test = split.train.x[:TEACHERS], split.train.y[:TEACHERS], (split.test.x, split.test.y)
        teacher = train(trial, seed, (256, 256), x, y)
        found["teacher"].append(accuracy(teacher, test))
        for name, loss in arms.items():
            student = train(trial, seed, (32, 32), x[:STUDENTS], y[:STUDENTS], loss, teacher)
            found[name].append(accuracy(student, test))
    return [
        difference("test accuracy, points: with NKD minus cross-entropy alone", ">=", 2.0,
                   nkd=found["nkd"], ce=found["ce"], teacher=found["teacher"]),
        difference("test accuracy, points: NKD at temperature 2 minus soft labels at 4", ">=", 0.0,
                   nkd=found["nkd_tau_2"], kd=found["kd"]),
    ]  # fmt: skip


def train(
    trial: Trial,
    seed: int,
    hidden: tuple[int, ...],
    x: Tensor,
    y: Tensor,
    loss: DistillationLoss | None = None,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """A network after its steps on noisy batches, by cross-entropy and the loss of its logits and the
    teacher's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(MLP(x.shape[1:], hidden), nn.Linear(hidden[-1], 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    generator, steps = seeded("batches", seed), trial.few(STEPS, 20)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        noisy = x[rows] + NOISE * torch.randn(x[rows].shape, generator=generator)
        logits = network(noisy)
        total = F.cross_entropy(logits, y[rows])
        if loss is not None and teacher is not None:
            with torch.no_grad():
                known = teacher(noisy)
            total = total + loss(logits, known, y[rows])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return network.eval()
