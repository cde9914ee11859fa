"""Hyp-OC: one class against drawn pseudo-negatives, told apart in hyperbolic space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_numbers, check_positive, draw_normal
from logitkit.ops.fitted import Fitted
from logitkit.ops.poincare import dist, expmap, hyperplane_logits, project
from logitkit.registry import Choice, Real, part


def pairwise_confusion(x: Float[Tensor, "batch d"], c: float) -> Float[Tensor, ""]:
    """Sum of the distances of row i to row i + half, i < half, over the number of rows; an odd one is out."""
    half = len(x) // 2
    return dist(x[:half], x[half : 2 * half], c).sum() / (2 * half) if half else 0 * x.sum()


def clip_norm(x: Float[Tensor, "*batch d"], radius: float) -> Float[Tensor, "*batch d"]:
    """x, shortened to `radius` if it is longer."""
    return x * (radius / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=radius))


def half_total_error_rate(
    inside: Float[Tensor, " n"], outside: Float[Tensor, " m"], threshold: float
) -> float:
    """Mean of the shares of inside scores above and outside scores at or below `threshold`."""
    return ((inside > threshold).double().mean() + (outside <= threshold).double().mean()).item() / 2


def equal_error_rate(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> tuple[float, float]:
    """The error where both shares of `half_total_error_rate` are as equal as they get, and its threshold."""
    thresholds = torch.cat([inside, outside]).unique()
    false = 1 - torch.searchsorted(inside.sort().values, thresholds, right=True) / len(inside)
    missed = torch.searchsorted(outside.sort().values, thresholds, right=True) / len(outside)
    best = int((false - missed).abs().argmin())
    return ((false[best] + missed[best]) / 2).item(), thresholds[best].item()


@part(
    "hyp_oc",
    "detect",
    title="Hyp-OC: Hyperbolic One Class Classification for Face Anti-Spoofing",
    paper="arXiv:2404.14406",
    number=77,
    replaces="msp",
    needs=("features",),
    search_space={"c": Choice(0.0, 0.01, 0.1, 1.0), "std": Real(0.3, 3.0, log=True)},
)
class HypOC(Fitted):
    """A one-class detector that learns from ordinary examples alone: a small network tells their features
    from random ones around the same mean, and is read as how abnormal an input is.

    Equation: pseudo-negatives ~ N(m_t, std^2 I), m_t = alpha m_{t-1} + (1 - alpha) mean of the batch, as
    many as the batch has rows. h = network(features), shortened to `clip`; x = the exponential map of h at
    a learned point of the Poincare ball of curvature -c; logits of hyperbolic multinomial regression
    (`ops.poincare`). loss = cross-entropy (real 0, pseudo-negative 1) + Hyp-PC, the pairwise distances of
    real embeddings over the two halves of the batch, over its size. score = logit_1 - logit_0, the log-odds
    of the paper's score.

    Shapes: `fit(features, y=None)` with features (batch, d); `score(features)` -> (batch,), higher is more
    abnormal. `loss(features)` -> scalar trains a backbone with the detector (give it `in_features`, and its
    parameters to the optimiser), with the features as they are; `fit` standardises them first, for std is in
    their units.

    Defaults: c = 0.1, clip = 2, alpha = 0.8 and std = 1, the paper's; c = 0 is the Euclidean model. The
    network has ReLU layers of 128 and 128, where the authors' for 4096 features ends in 128. `fit` runs
    Adam at 1e-3 (theirs of 1e-6 is for a pretrained backbone) for 30 epochs in batches of 64, weight decay
    1e-6 and gradient norms clipped at 3, from `seed`.

    Raises: ValueError for a negative c, an alpha outside [0, 1), sizes, std, clip or lr that are not
    positive, features of another shape or dtype, NaN, an empty batch, or use before `fit`.

    Source: Narayan and Patel, FG 2024, arXiv:2404.14406, equations 4-10. Their code has arctan in the place
    of artanh in Hyp-PC, restarts the running mean from the last batch's, and rescales gradients in the
    ball; here the paper's formulas.

    Not for: features in which abnormal inputs look like ordinary ones; classes known for training (see
    `mahalanobis`).
    """

    mean: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int | None = None,
        c: float = 0.1,
        hidden: Sequence[int] = (128, 128),
        clip: float = 2.0,
        alpha: float = 0.8,
        std: float = 1.0,
        lr: float = 1e-3,
        epochs: int = 30,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not c >= 0:
            raise ValueError(f"c must be at least 0, got {c}.")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must lie in [0, 1), got {alpha}.")
        check_positive(clip=clip, std=std, lr=lr, epochs=epochs, batch_size=batch_size)
        if not hidden or not all(isinstance(n, int) and n > 0 for n in hidden):
            raise ValueError(f"hidden must hold at least one positive width, got {hidden!r}.")
        self.c, self.hidden, self.clip, self.alpha, self.std = c, tuple(hidden), clip, alpha, std
        self.lr, self.epochs, self.batch_size, self.seed = lr, epochs, batch_size, seed
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self._start(in_features)

    def _start(self, in_features: int | None) -> None:
        """New weights; without `in_features` the first layer waits for features."""
        width = self.hidden[0]
        first = nn.LazyLinear(width) if in_features is None else nn.Linear(in_features, width)
        layers: list[nn.Module] = [first, nn.ReLU()]
        for fan_in, fan_out in pairwise(self.hidden):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.origin = nn.Parameter(torch.zeros(self.hidden[-1]))
        bound = self.hidden[-1] ** -0.5
        self.normals = nn.Parameter(torch.empty(2, self.hidden[-1]).uniform_(-bound, bound))
        self.points = nn.Parameter(torch.empty(2, self.hidden[-1]).uniform_(-bound, bound))

    def embed(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch h"]:
        """Points of the ball."""
        return self._points(self._standard(features))

    def _standard(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return (features.to(self.centre.dtype) - self.centre) / self.scale

    def _points(self, standard: Float[Tensor, "batch d"]) -> Float[Tensor, "batch h"]:
        h = self.layers(standard.to(self.origin.dtype))
        with torch.autocast(h.device.type, enabled=False):
            h = clip_norm(h.to(self.origin.dtype), self.clip)
            origin = project(expmap(torch.zeros_like(self.origin), self.origin, self.c), self.c)
            return project(expmap(origin, h, self.c), self.c)

    def logits(self, points: Float[Tensor, "batch h"]) -> Float[Tensor, "batch 2"]:
        """Scores of the real and of the pseudo-negative class."""
        p = expmap(torch.zeros_like(self.points), self.points, self.c)
        a = self.normals * (1 - self.c * p.square().sum(dim=1, keepdim=True))
        return hyperplane_logits(points, a, p, self.c)

    def loss(self, features: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Hyp-CE plus Hyp-PC of ordinary examples, with freshly drawn pseudo-negatives."""
        real = self._standard(_check(features))
        mean = real.detach().mean(dim=0)
        mean = (1 - self.alpha) * mean + (self.alpha * self.mean if self.mean.numel() else 0)
        if self.training:
            self.mean = mean
        negatives = mean + self.std * draw_normal(real.shape, mean)
        points = self._points(torch.cat([real, negatives]))
        target = torch.arange(2, device=points.device).repeat_interleave(len(real))
        return F.cross_entropy(self.logits(points), target) + pairwise_confusion(points[: len(real)], self.c)

    def fit(self, x: Float[Tensor, "batch d"], y: Int[Tensor, " batch"] | None = None) -> HypOC:
        """Train the network on features of ordinary examples, in float32, without labels; returns self."""
        x = _check(x).detach().float()
        self.mean = x.new_zeros(0)
        self.centre, self.scale = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-6)
        with torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self._start(x.shape[1])
            self.to(x.device, torch.float32).train()
            optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=1e-6)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).to(x.device).split(self.batch_size):
                    optimizer.zero_grad()
                    self.loss(x[rows]).backward()
                    nn.utils.clip_grad_norm_(self.parameters(), 3.0)
                    optimizer.step()
        return self.eval()

    @torch.no_grad()
    def score(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Log-odds of being a pseudo-negative rather than an ordinary example."""
        x = _check(x)
        if not self.mean.numel():
            raise ValueError(f"hyp_oc must be fitted before it sees features {tuple(x.shape)}.")
        if x.shape[1] != len(self.mean):
            raise ValueError(f"features must have shape (batch, {len(self.mean)}), got {tuple(x.shape)}.")
        real, pseudo = self.logits(self.embed(x)).unbind(dim=1)
        return (pseudo - real).to(torch.promote_types(x.dtype, torch.float32))


def _check(x: Tensor) -> Float[Tensor, "batch d"]:
    """Features, seen not to be NaN."""
    x = check_features(x)
    check_numbers(x, "x")
    return x
