"""Contrastive and metric losses over all pairs, forward and backward, 128-dimensional embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal, peer
from logitkit.ops import (
    all_triplets,
    info_nce,
    labelled_nt_xent,
    multi_similarity,
    nt_xent,
    sigmoid_contrastive,
    supervised_contrastive,
    weighted_contrastive,
)
from logitkit.ops.gemm import fast_products

PEERS = ("pytorch-metric-learning", "lightly")
NOTE = """\
Same losses and gradients as the peers, checked in the run. pytorch-metric-learning's NT-Xent compares every
positive pair with every negative pair, which is cubic and asks for 34 GB at batch 2048. All triplets: of the
millions of triplets a few lie within float32's rounding of the margin and count in one implementation and
not in the other; both gradients differ from float64's by as much, some 1e-4, as they differ from each other.
The symmetric InfoNCE is computed as two losses, six products instead of the four it needs. Batch 65,536 runs
in strips of 256 rows, 64 MiB; what it takes beyond its three products is reading the strips from memory. The
20 MiB are for 2,048 embeddings; with 2,048 pairs, twice as many, the two-sided weights take 22."""

Loss = Callable[[Tensor, Tensor], Tensor]
WIDTH = 128


def _inputs(n: int) -> tuple[Tensor, Tensor]:
    """Embeddings in n/4 loose classes."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(n // 4, (n,), generator=g)
    x = torch.randn(n, WIDTH, generator=g) + 0.5 * torch.randn(n // 4, WIDTH, generator=g)[labels]
    return x.requires_grad_(), labels


def _step(loss: Loss, x: Tensor, labels: Tensor) -> Tensor:
    x.grad = None
    value = loss(x, labels)
    value.backward()
    return value.detach()


def _three_products(x: Tensor, n: int) -> Arm:
    """What no implementation can do without: n x n similarities, and a gradient for either side."""
    z = x.detach()[:n].clone()
    rows = min(len(z), max(256, 2**20 // len(z)))
    strip, left, right = z.new_empty(rows, len(z)), torch.empty_like(z), torch.zeros_like(z)

    def run() -> None:
        with fast_products():
            for a in range(0, len(z), rows):
                part = strip[: len(z) - a]
                torch.mm(z[a : a + rows], z.T, out=part)
                torch.mm(part, z, out=left[a : a + rows])
                right.addmm_(part.T, z[a : a + rows])

    return run


def _pml(name: str, **options: float) -> Loss | None:
    module = peer("pytorch_metric_learning.losses")
    return None if module is None else getattr(module, name)(**options)


def _halves(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of two views as one of the whole batch."""
    return lambda x, _: loss(x[: len(x) // 2], x[len(x) // 2 :])


def _lightly(name: str, **options: float) -> Loss | None:
    module = peer("lightly.loss")
    return None if module is None else _halves(getattr(module, name)(**options))


# What people write in plain torch.


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def _dense_nt_xent(x: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T / 0.07
    positive, negative = _masks(labels)
    rest = torch.logsumexp(s.masked_fill(~negative, -math.inf), 1, keepdim=True)
    return F.softplus(rest - s)[positive].mean()


def _dense_simclr(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]))
    s = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    return F.cross_entropy(s, torch.arange(len(z)).roll(len(a)))


def _dense_supcon(x: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(x)
    positive, _ = _masks(labels)
    s = (z @ z.T / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    log = s - torch.logsumexp(s, 1, keepdim=True)
    count = positive.sum(1)
    return -(log.masked_fill(~positive, 0).sum(1) / count.clamp(min=1))[count > 0].mean()


def _dense_multi(x: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T - 0.5
    positive, negative = _masks(labels)
    near = torch.logsumexp(F.pad((-2 * s).masked_fill(~positive, -math.inf), (0, 1)), 1) / 2
    far = torch.logsumexp(F.pad((50 * s).masked_fill(~negative, -math.inf), (0, 1)), 1) / 50
    return (near + far).mean()


def _dense_sigmoid(a: Tensor, b: Tensor) -> Tensor:
    s = 10 * F.normalize(a) @ F.normalize(b).T - 10
    return -F.logsigmoid(s * (2 * torch.eye(len(s)) - 1)).sum() / len(s)


def _dense_info_nce(a: Tensor, b: Tensor) -> Tensor:
    s = F.normalize(a) @ F.normalize(b).T / 0.07
    target = torch.arange(len(s))
    return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def _dense_weighted(a: Tensor, b: Tensor) -> Tensor:
    z, w = F.normalize(a), F.normalize(b)
    cost = 2 - 2 * z @ w.T
    far = cost.masked_fill(torch.eye(len(z), dtype=torch.bool), math.inf)

    def push(c: Tensor) -> Tensor:
        p = torch.softmax(-c, 1)
        return (p * c.masked_fill(p == 0, 0)).sum(1).mean()

    return cost.diagonal().mean() - (push(far) + push(far.T)) / 2


def _arms(n: int, pairs: bool, losses: dict[str, Loss | None], check: bool, small: bool) -> Arms:
    x, labels = _inputs(64 if small else n)
    found = {name: loss for name, loss in losses.items() if loss is not None}
    run: dict[str, Arm] = {name: partial(_step, loss, x, labels) for name, loss in found.items()}
    run["three products"] = _three_products(x, len(x) // 2 if pairs else len(x))

    def values() -> dict[str, float]:
        gradients = {}
        for name, loss in found.items():
            _step(loss, x, labels)
            assert x.grad is not None
            gradients[name] = x.grad.clone()
        ours = gradients.pop("ours")
        return {
            f"gradient, ours against {name}": float((g - ours).abs().max() / g.abs().max())
            for name, g in gradients.items()
        }

    return Arms(run, leaves=[x], values=values if check else None)


def _case(
    name: str, n: int, losses: Callable[[], dict[str, Loss | None]], goals: list[Goal], **options: int
) -> Case:
    check = "rounds" not in options
    pairs = "pairs" in name
    memory = () if n > 10_000 else ("ours",)
    return Case(name, lambda small: _arms(n, pairs, losses(), check, small), goals, memory=memory, **options)


def cases() -> list[Case]:
    pml = "pytorch-metric-learning"
    memory = Goal("ours", 20, unit="MiB")
    return [
        _case(
            "NT-Xent with labels, batch 512",
            512,
            lambda: {"ours": labelled_nt_xent, pml: _pml("NTXentLoss"), "dense torch": _dense_nt_xent},
            [Goal("ours", 0.001, pml)],
            rounds=7,
        ),
        _case(
            "NT-Xent with labels, batch 2048 (pytorch-metric-learning needs 34 GB)",
            2048,
            lambda: {"ours": labelled_nt_xent, "dense torch": _dense_nt_xent},
            [memory],
        ),
        _case(
            "supervised contrastive, batch 2048",
            2048,
            lambda: {"ours": supervised_contrastive, pml: _pml("SupConLoss"), "dense torch": _dense_supcon},
            [Goal("ours", 0.2, pml), memory],
        ),
        _case(
            "multi-similarity, batch 2048",
            2048,
            lambda: {
                "ours": multi_similarity,
                pml: _pml("MultiSimilarityLoss"),
                "dense torch": _dense_multi,
            },
            [Goal("ours", 0.2, pml), memory],
        ),
        _case(
            "all triplets, batch 2048",
            2048,
            lambda: {
                "ours": partial(all_triplets, margin=0.2),
                pml: _pml("TripletMarginLoss", margin=0.2),
            },
            [Goal("ours", 0.07, pml), memory],
        ),
        _case(
            "NT-Xent of two views (SimCLR), batch 2048",
            2048,
            lambda: {
                "ours": _halves(nt_xent),
                "lightly": _lightly("NTXentLoss", temperature=0.5),
                "dense torch": _halves(_dense_simclr),
            },
            [memory],
        ),
        _case(
            "InfoNCE, symmetric (CLIP), 2048 pairs",
            4096,
            lambda: {
                "ours": _halves(partial(info_nce, symmetric=True)),
                "dense torch": _halves(_dense_info_nce),
            },
            [memory],
        ),
        _case(
            "sigmoid (SigLIP), 2048 pairs",
            4096,
            lambda: {"ours": _halves(sigmoid_contrastive), "dense torch": _halves(_dense_sigmoid)},
            [memory],
        ),
        _case(
            "weighted (CACR), 2048 pairs",
            4096,
            lambda: {
                "ours": lambda x, _: weighted_contrastive(x.view(2, -1, WIDTH)),
                "dense torch": _halves(_dense_weighted),
            },
            [memory],
        ),
        _case(
            "supervised contrastive, batch 65,536 (16 GiB of similarities)",
            65_536,
            lambda: {"ours": supervised_contrastive},
            [],
            rounds=1,
        ),
    ]
