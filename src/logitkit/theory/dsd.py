"""Dynamic signal distribution: a task of images on which weight sharing and locality can be counted in
examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops import check_numbers, check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import Choice, Real, part

Kind = Literal["cnn", "lcn", "fcn"]
KINDS: tuple[Kind, ...] = ("cnn", "lcn", "fcn")


class Signals(NamedTuple):
    """Rows of k patches of d numbers, their labels -1 and 1, and the unknown signal, of length 1."""

    x: Float[Tensor, "n kd"]
    y: Float[Tensor, " n"]
    signal: Float[Tensor, " d"]


def dsd(
    n: int, k: int, d: int, sigma: float, generator: torch.Generator, *, static: bool = False,
    signal: Float[Tensor, " d"] | None = None,
) -> Signals:  # fmt: skip
    """Patch t holds y w + sigma e, the others sigma e, e standard normal; t is uniform, or 0 if `static`. w
    is drawn on the sphere unless given."""
    if signal is None:
        signal = F.normalize(torch.randn(d, generator=generator), dim=0)
    y = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    place = torch.zeros(n, dtype=torch.long) if static else torch.randint(k, (n,), generator=generator)
    x = sigma * torch.randn(n, k, d, generator=generator)
    x[torch.arange(n), place] += y[:, None] * signal
    return Signals(x.flatten(1), y, signal)


def bayes_score(x: Float[Tensor, "n kd"], signal: Float[Tensor, " d"], sigma: float) -> Float[Tensor, " n"]:
    """Log-odds of y = 1 under the exact mixture: log sum_t exp(<w, x_t> / s^2) - log sum_t exp(-<w, x_t> /
    s^2). No learner errs less than its sign."""
    z = x.unflatten(1, (-1, len(signal))) @ signal / sigma**2
    return z.logsumexp(1) - (-z).logsumexp(1)


def soft_threshold(z: Float[Tensor, "*batch"], b: float) -> Float[Tensor, "*batch"]:
    """relu(z - b) - relu(-z - b): z, shortened by b."""
    return z.sign() * (z.abs() - b).relu()


@part(
    "dsd",
    "theory",
    title="Role of Locality and Weight Sharing in Image-Based Tasks: A Sample Complexity Separation between"
    " CNNs, LCNs, and FCNs",
    paper="arXiv:2403.15707",
    number=212,
    aliases=("dsd_task",),
    tasks=("binary",),
    search_space={"kind": Choice(*KINDS), "b": Real(0.0, 0.5), "lr": Real(0.03, 3.0, log=True)},
)
class DSDNet(Fitted):
    """A one-layer convolutional, locally or fully connected network on patches, trained by full-batch
    gradient descent: the smallest models that differ in weight sharing and locality alone.

    Equation: f = sum_i phi(<w, x_i>) ("cnn", d weights), sum_i phi(<w_i, x_i>) ("lcn", k d) or sum_j
    phi(<W_j, x>) over j = 1..k ("fcn", k^2 d), phi(z) = relu(z - b) - relu(-z - b); the loss is the mean of
    log(1 + exp(-y f)). With gradient descent the network cannot tell rotated data from an equally rotated
    start: rotations common to all patches for cnn, of each patch for lcn, of everything for fcn.

    Shapes: x (n, k d), y (n,) of -1 and 1; `predict(x)` gives f (n,). `weight` is (d,), (k, d) or (k, k d).

    Defaults: 300 steps of size 1 from entries N(0, 1 / d) (fcn: N(0, 1 / (k d))), b = 0.1.

    Raises: ValueError for another kind, numbers out of their range, rows that k does not divide, labels other
    than -1 and 1, an empty batch or NaN.

    Source: Lahoti, Karp, Winston, Singh, Li, ICLR 2024, arXiv:2403.15707, section 3.

    Not for: tasks; it is a measuring device, see `sample_complexity`.
    """

    def __init__(
        self, kind: Kind = "cnn", k: int = 4, b: float = 0.1, lr: float = 1.0, steps: int = 300, seed: int = 0
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        check_positive(k=k, lr=lr, steps=steps)
        if not b >= 0:
            raise ValueError(f"b must not be negative, got {b}.")
        self.kind, self.k, self.b, self.lr, self.steps, self.seed = kind, k, b, lr, steps, seed
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(0))

    def start(self, width: int) -> Tensor:
        """The weights before the first step, for rows of so many numbers."""
        d = width // self.k
        shape = {"cnn": (d,), "lcn": (self.k, d), "fcn": (self.k, width)}[self.kind]
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return drawn * shape[-1] ** -0.5

    def fit(self, x: Float[Tensor, "n kd"], y: Float[Tensor, " n"], start: Tensor | None = None) -> DSDNet:
        """Train, from `start` instead of the random weights if it is given; returns self."""
        self._check(x)
        if y.shape != x.shape[:1] or not bool(((y == 1) | (y == -1)).all()):
            raise ValueError(f"y must be {len(x)} numbers of -1 and 1, got shape {tuple(y.shape)}.")
        x, y = x.detach(), y.to(x)
        w = (self.start(x.shape[1]) if start is None else start.detach()).to(x)
        for _ in range(self.steps):
            z = self._products(x, w)
            slope = -y * torch.sigmoid(-y * soft_threshold(z, self.b).sum(1)) / len(x)
            passed = slope[:, None] * (z.abs() > self.b)
            w = w - self.lr * self._gathered(passed, x)
        self.weight = w
        return self

    def predict(self, x: Float[Tensor, "n kd"]) -> Float[Tensor, " n"]:
        """f of each row."""
        self._check(x)
        if x.shape[1] != self.weight.shape[-1] * (1 if self.kind == "fcn" else self.k):
            raise ValueError(f"x must be as wide as the rows that `fit` saw, got shape {tuple(x.shape)}.")
        return soft_threshold(self._products(x, self.weight.to(x.dtype)), self.b).sum(1)

    def _gathered(self, passed: Float[Tensor, "n k"], x: Tensor) -> Tensor:
        """The gradient of the weights, given that of the products."""
        if self.kind == "fcn":
            return passed.mT @ x
        each = torch.einsum("nk,nkd->kd", passed, x.unflatten(1, (self.k, -1)))
        return each.sum(0) if self.kind == "cnn" else each

    def _products(self, x: Tensor, w: Tensor) -> Float[Tensor, "n k"]:
        if self.kind == "fcn":
            return x @ w.mT
        return (x.unflatten(1, (self.k, -1)) * w).sum(-1)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or 0 in x.shape or x.shape[1] % self.k:
            raise ValueError(
                f"x must have shape (n, {self.k} d), of {self.k} patches, not empty, got {tuple(x.shape)}."
            )
        if not x.is_floating_point():
            raise ValueError(f"x must be floating point, got {x.dtype}.")
        check_numbers(x, "x")


def sample_complexity(
    draw: Callable[[int, int], Signals],
    kind: Kind,
    k: int,
    sizes: Sequence[int],
    *,
    target: float = 0.1,
    bs: Sequence[float] = (0.0, 0.1, 0.3),
    lrs: Sequence[float] = (0.3, 1.0, 3.0),
    steps: int = 300,
    test: int = 4000,
    seed: int = 0,
) -> int | None:
    """The first of `sizes` training rows from which the network errs on at most `target` of the test rows,
    its threshold and step size the best on as many validation rows; None if none does.

    draw(n, part): rows of the same signal, part 0 for training, 1 for validation, 2 for test.
    """
    x, y, _ = draw(test, 2)
    for n in sizes:
        train, val = draw(n, 0), draw(n, 1)
        nets = [DSDNet(kind, k, b, lr, steps, seed).fit(train.x, train.y) for b in bs for lr in lrs]
        best = min(nets, key=lambda net: _error(net, val.x, val.y))
        if _error(best, x, y) <= target:
            return n
    return None


def _error(net: DSDNet, x: Tensor, y: Tensor) -> float:
    return (net.predict(x) * y <= 0).double().mean().item()
