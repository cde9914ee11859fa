"""Equiangular basis vectors: classes as fixed, nearly orthogonal directions instead of learned weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import check_features, check_positive
from logitkit.ops.sphere import cosine, unit
from logitkit.registry import Real, part


def welch_bound(n: int, d: int) -> float:
    """The least that max |cos| between n directions in d dimensions can be: sqrt((n - d) / (d (n - 1)))."""
    return math.sqrt((n - d) / (d * (n - 1))) if n > d else 0.0


class EBVQuality(NamedTuple):
    """How equiangular a set of directions is: the largest and mean |cos| between two of them, and the Welch
    bound on the largest."""

    max_cosine: float
    mean_cosine: float
    welch_bound: float


def ebv_quality(vectors: Float[Tensor, "n d"]) -> EBVQuality:
    """Measure a set of directions (rows need not have unit length)."""
    n, d = vectors.shape
    off_diagonal = _cosines(unit(vectors.double()), 0, n).abs()
    mean = float(off_diagonal.sum()) / max(n * (n - 1), 1)
    return EBVQuality(float(off_diagonal.amax()), mean, welch_bound(n, d))


def _cosines(vectors: Float[Tensor, "n d"], start: int, stop: int) -> Float[Tensor, "rows n"]:
    """Cosines of rows start:stop with all rows, that of a row with itself set to 0."""
    cosines = vectors[start:stop] @ vectors.T
    cosines.diagonal(offset=start).zero_()
    return cosines


@torch.no_grad()
def generate_ebv(
    n: int,
    d: int,
    alpha: float | None = None,
    *,
    rows: int = 1024,
    steps: int = 500,
    seed: int = 42,
) -> Float[Tensor, "n d"]:
    """`n` unit vectors in `d` dimensions with every |cos| at most `alpha`; see `EBVHead`.

    For n <= d they are exactly orthonormal. For n > d the largest |cos| is driven down by Adam on the
    sphere, along the gradient of a soft maximum over pairs that sharpens step by step, and the search stops
    as soon as it is within 1e-4 of `alpha`; without one it takes `steps` and returns the best set met,
    between the Welch bound and one and a half times it. At most `rows` x n cosines are in memory at a time.
    Drawn from `seed` alone, without touching torch's global generator.

    Raises ValueError for sizes that are not positive, an `alpha` below the Welch bound, or one not reached in
    `steps`.
    """
    check_positive(n=n, d=d, rows=rows, steps=steps)
    bound = welch_bound(n, d)
    if alpha is not None and not bound <= alpha:
        raise ValueError(
            f"no {n} directions in {d} dimensions have every |cos| at most {alpha}: the Welch bound is"
            f" {bound:.4f}; raise alpha or d, or lower n."
        )
    start = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if n <= d:
        q, r = torch.linalg.qr(start.T)
        return (q * r.diagonal().sign()).T.float().contiguous()
    vectors = nn.Parameter(unit(start.float()))
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, lowest = vectors.detach().clone(), math.inf
    target = -math.inf if alpha is None else alpha + 1e-4
    blocks = [(i, min(i + rows, n)) for i in range(0, n, rows)]
    for step in range(steps):
        largest = max(float(_cosines(vectors, *block).abs().amax()) for block in blocks)
        if largest < lowest:
            best, lowest = vectors.detach().clone(), largest
        if lowest <= target:
            break
        sharpness = 10.0 * 100.0 ** (step / steps)
        pulls = []
        for block in blocks:
            cosines = _cosines(vectors, *block)
            pulls.append((cosines.sign() * ((cosines.abs() - largest) * sharpness).exp()) @ vectors)
        gradient = torch.cat(pulls)
        vectors.grad = gradient - (gradient * vectors).sum(dim=1, keepdim=True) * vectors
        optimizer.step()
        schedule.step()
        vectors.copy_(unit(vectors))
    if alpha is not None and lowest > target:
        raise ValueError(
            f"{n} directions in {d} dimensions reached a largest |cos| of {lowest:.4f}, not the alpha"
            f" {alpha} asked for, in {steps} steps; raise alpha, d or steps."
        )
    return best


@part(
    "ebv",
    "heads",
    title="Equiangular Basis Vectors",
    paper="arXiv:2303.11637",
    number=45,
    replaces="linear",
    search_space={"temperature": Real(0.02, 0.5, log=True)},
)
class EBVHead(nn.Module):
    """Classes as fixed, equally distant directions that the features learn to point at: for very many
    classes, because the parameters need not grow with their number, and for adding classes later.

    Equation: logits_k = cos(z, w_k) / T with z = A x + a learned and w_k fixed unit vectors that satisfy
    |<w_i, w_j>| <= alpha for i != j; predict the largest.

    Shapes: features (batch, in_features) -> logits (batch, num_classes) in [-1/T, 1/T], in at least float32.
    The vectors (num_classes, dim) are a buffer in `state_dict`, because another set means other classes.

    Defaults: T = 0.07 and dim = num_classes, as the authors' ImageNet run, where 1000 vectors in 1000
    dimensions are orthonormal to |cos| <= 0.002. Give a smaller `dim` to keep the learned map small, or
    `vectors` from `generate_ebv` with room for classes to come. Their generator descends the sum of
    |cos| - alpha over the pairs above alpha; here n <= d is exact, and n > d lowers the largest |cos|.

    Raises: ValueError for sizes or a temperature that are not positive, `vectors` of another shape, features
    of another shape or dtype, or an empty batch.

    Source: Shen, Sun, Wei, CVPR 2023, arXiv:2303.11637, the definition of EBVs and the learning objective in
    section 3; T and dim from the authors' code.

    Not for: classes with a known similarity structure, which equal angles deny; two classes, where it only
    loses the freedom a linear layer has.
    """

    vectors: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        dim: int | None = None,
        temperature: float = 0.07,
        vectors: Float[Tensor, "num_classes dim"] | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes, temperature=temperature)
        if vectors is None:
            vectors = generate_ebv(num_classes, num_classes if dim is None else dim)
        elif vectors.ndim != 2 or vectors.shape[0] != num_classes or dim not in (None, vectors.shape[1]):
            expected = "dim" if dim is None else dim
            raise ValueError(
                f"vectors must have shape ({num_classes}, {expected}), got {tuple(vectors.shape)}."
            )
        self.in_features = in_features
        self.temperature = temperature
        self.map = nn.Linear(in_features, vectors.shape[1])
        self.register_buffer("vectors", unit(vectors.detach()))

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch classes"]:
        z = self.map(check_features(features, self.in_features))
        return cosine(z, self.vectors) / self.temperature
