"""183: class directions from the words of their names keep more of old classes than a learned last layer.

Set beforehand: 20 classes that are a colour, a fill and a shape, 5 tasks of 4, a replay memory of 10 images
a class, seeds 0-4, all thresholds.
Left open, and chosen before the first run:
- 3000 images of 24 pixels, of which 60 % train and 20 % test; `cnn` of width 16. 100 batches of 64 from the
  task's images and the memory together for each task, instead of seconds; AdamW at 1e-3, started anew with
  each task. Cross-entropy is over the classes seen so far.
- Names are read by `hashed_text` in 512 dimensions. The orthogonal head has random orthonormal vectors
  there instead, the shuffled one the names' vectors in random order.
- Accuracy is over the classes of all tasks so far, without knowing the task. Forgetting is the mean over old
  tasks of their best accuracy minus the last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.engine import Prepared
from logitkit.heads.semantic import SemanticHead, hashed_text
from logitkit.models import CNN
from logitkit.ops import forgetting, incremental_accuracy

CLASSES, PER_TASK, MEMORY, BATCH = 20, 4, 10, 64
HEADS = ("semantic", "linear", "orthogonal", "shuffled")


class Outcome(NamedTuple):
    """Percent."""

    final: float
    forgotten: float


@claim(
    "heads",
    "semantic",
    statement="Learning 20 classes in 5 tasks, a head of directions from the words of the class names ends"
    " more accurate than a learned one and than fixed orthogonal ones, and forgets less; with the names"
    " shuffled most of that is gone.",
    seeds=range(5),
)
def semantic(trial: Trial) -> list[Check]:
    runs = {head: [learned(trial, seed, head) for seed in trial.seeds] for head in HEADS}
    final = {head: [run.final for run in outcomes] for head, outcomes in runs.items()}
    lost = {head: [run.forgotten for run in outcomes] for head, outcomes in runs.items()}
    gains = torch.tensor([final["semantic"], final["shuffled"], final["orthogonal"]]).mean(dim=1)
    return [
        difference("final accuracy on all classes, points: semantic minus learned linear head", ">=", 3.0,
                   semantic=final["semantic"], linear=final["linear"]),
        difference("final accuracy on all classes, points: semantic minus fixed orthogonal head", ">=", 1.0,
                   semantic=final["semantic"], orthogonal=final["orthogonal"], shuffled=final["shuffled"]),
        difference("forgetting, points: learned linear head minus semantic", ">=", 3.0,
                   linear=lost["linear"], **{head: lost[head] for head in HEADS if head != "linear"}),
        over_seeds("half of the semantic head's gain over the orthogonal one minus that of shuffled names,"
                   " points", [float((gains[0] - gains[2]) / 2 - (gains[1] - gains[2]))], ">=", 0.0, final),
    ]  # fmt: skip


def head_of(kind: str, in_features: int, names: tuple[str, ...], seed: int) -> nn.Module:
    """A head for all classes."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "linear":
        return nn.Linear(in_features, CLASSES)
    targets = hashed_text(names)
    if kind == "orthogonal":
        targets = torch.linalg.qr(torch.randn(targets.shape[1], CLASSES, generator=generator)).Q.T
    elif kind == "shuffled":
        targets = targets[torch.randperm(CLASSES, generator=generator)]
    return SemanticHead(in_features, CLASSES, embeddings=targets)


def learned(trial: Trial, seed: int, kind: str) -> Outcome:
    """Five tasks in a row."""
    source = data.load(f"attributes:n={trial.few(3000, 400)},classes={CLASSES},size=24+seed={seed}")
    assert source.class_names is not None
    prepared = Prepared.of(data.split(source, seed))
    (x, y), test = prepared.train, prepared.test
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = CNN(prepared.shape.input_shape, width=16)
        head = head_of(kind, backbone.out_features, source.class_names, seed)
    network = nn.Sequential(backbone, head)
    memory = torch.empty(0, dtype=torch.int64)
    accuracies = torch.zeros(CLASSES // PER_TASK, CLASSES // PER_TASK)
    for task in range(len(accuracies)):
        seen = PER_TASK * (task + 1)
        current = (y // PER_TASK == task).nonzero().flatten()
        rows = torch.cat([current, memory])
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        for _ in range(trial.few(100, 2)):
            batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
            optimizer.zero_grad()
            F.cross_entropy(network(x[batch])[:, :seen], y[batch]).backward()
            optimizer.step()
        accuracies[task] = by_task(network, test, seen)
        kept = [current[y[current] == label][:MEMORY] for label in range(seen - PER_TASK, seen)]
        memory = torch.cat([memory, *kept])
    return Outcome(100 * float(incremental_accuracy(accuracies)[-1]), 100 * float(forgetting(accuracies)))


@torch.no_grad()
def by_task(network: nn.Module, rows: tuple[Tensor, Tensor], seen: int) -> Tensor:
    """Accuracy on each task's classes among all that were seen; 0 for tasks to come."""
    x, y = rows
    network.eval()
    right = (network(x)[:, :seen].argmax(dim=1) == y).float()
    network.train()
    task = y // PER_TASK
    return torch.stack([right[task == t].mean() for t in range(CLASSES // PER_TASK)])
