"""Mutual information of high-dimensional things: compressed first, then estimated from nearest neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_numbers, check_positive, conditional_mutual_information, mutual_information
from logitkit.probe.base import Known, check_layer, named
from logitkit.registry import part

Compression = Literal["pca", "ae"] | None
CHUNK = 1024  # rows whose distances to all others are held at once


class Estimate(NamedTuple):
    """Nats, with a 95 % interval over resampled rows; NaN where the estimator has no terms per row."""

    value: float
    low: float
    high: float


@part(
    "lossy_mi",
    "probe",
    title="Information Bottleneck Analysis of Deep Neural Networks via Lossy Compression",
    paper="arXiv:2305.08013",
    number=42,
    replaces="information_plane",
)
class LossyMI:
    """Mutual information of two sets of vectors or images, each compressed to `dim` numbers, where nearest
    neighbours in thousands of dimensions say nothing: for layers with noise, and for what images share.

    Equation: I(A; B) = h(A) + h(B) - h(A, B), each entropy that of Kozachenko and Leonenko,
    h = mean_i sum_j w_j (psi(n) - psi(j) + log V_d + d log r_ij), r_ij the distance of row i to its j-th
    neighbour after whitening, V_d the volume of the unit ball, weights w of `neighbour_weights`. A discrete
    label has I(T; Y) = h(T) - sum_y p(y) h(T | y). method="ksg" is `ops.mutual_information` instead.

    Shapes: `fit(x, t=None)` trains autoencoders on other rows than those of the estimate;
    `estimate(x, t)` -> `Estimate` in nats, of any (rows, ...); `conditional(x, t, given)` -> nats, what T
    knows of X that `given` does not say. As an estimator of `InformationPlane`: part(t, y, x) -> `Known` in
    bits.

    Defaults: an autoencoder for X and PCA for T, k = 5, the weighted estimator: the authors' code. 4
    dimensions.

    Raises: ValueError for settings out of range, wrong shapes or dtypes, NaN, k rows or fewer, an autoencoder
    without `fit`, rows that repeat (their entropy is minus infinity: add noise), columns without any spread.

    Source: Butakov et al., ICLR 2024, arXiv:2305.08013, and the authors' code, whose numbers it has;
    Berrett, Samworth, Yuan, arXiv:1606.00304, for the weights.

    Not for: comparing layers compressed to different dimensions. Compression only loses information: this is
    an estimate from below, up to the estimator's own error, which is 0.1 nat for 5,000 rows of Gaussians in 4
    + 4 dimensions (too low) and less in fewer. Nor for T of several far clusters beside an X without: the
    whitening that both share then hides what is near.
    """

    def __init__(
        self,
        compress_x: Compression = "ae",
        compress_t: Compression = "pca",
        dim: int = 4,
        k: int = 5,
        weighted: bool = True,
        method: Literal["kl", "ksg"] = "kl",
        epochs: int = 100,
        seed: int = 0,
    ) -> None:
        check_positive(dim=dim, k=k, epochs=epochs)
        for name, value in (("compress_x", compress_x), ("compress_t", compress_t)):
            if value not in ("pca", "ae", None):
                raise ValueError(f"{name} must be 'pca', 'ae' or None, got {value!r}.")
        if method not in ("kl", "ksg"):
            raise ValueError(f"method must be 'kl' or 'ksg', got {method!r}.")
        self.compress_x, self.compress_t, self.dim, self.k = compress_x, compress_t, dim, k
        self.weighted, self.method, self.epochs, self.seed = weighted, method, epochs, seed
        self.encoder_x: Autoencoder | None = None
        self.encoder_t: Autoencoder | None = None

    def fit(self, x: Float[Tensor, " n *x"], t: Float[Tensor, " n *t"] | None = None) -> LossyMI:
        """Train the autoencoders of X and, where `compress_t` is one, of T; returns self."""
        if self.compress_x == "ae":
            self.encoder_x = train_autoencoder(_rows(x, "x"), self.dim, self.epochs, self.seed)
        if self.compress_t == "ae":
            if t is None:
                raise ValueError("compress_t='ae' is fitted to rows of T, got 0 of them: pass t.")
            self.encoder_t = train_autoencoder(_rows(t, "t"), self.dim, self.epochs, self.seed + 1)
        return self

    def estimate(self, x: Float[Tensor, " n *x"], t: Float[Tensor, " n *t"]) -> Estimate:
        """I(X; T) in nats."""
        a, b = self._compressed(x, t)
        if self.method == "ksg":
            return Estimate(mutual_information(a, b, k=self.k), math.nan, math.nan)
        return _interval(
            self._entropy(a) + self._entropy(b) - self._entropy(torch.cat([a, b], dim=1)), self.seed
        )

    def conditional(
        self, x: Float[Tensor, " n *x"], t: Float[Tensor, " n *t"], given: Float[Tensor, " n *g"]
    ) -> float:
        """I(X; T | given) in nats, by `ops.conditional_mutual_information` with k neighbours: of what a layer
        knows, the part that its target, a number or a vector, does not ask for."""
        return conditional_mutual_information(*self._compressed(x, t), _rows(given, "given"), k=self.k)

    def __call__(
        self,
        t: Float[Tensor, " rows *layer"],
        y: Int[Tensor, " rows"] | None = None,
        x: Float[Tensor, " rows *x"] | None = None,
    ) -> Known:
        check_layer(t, y)
        if x is None:
            raise ValueError(f"I(X; T) is estimated from X, got {len(t)} rows of T alone: pass x.")
        bits = self.estimate(x, t).value / math.log(2)
        return Known(bits, None if y is None else self._of_label(t, y) / math.log(2))

    def _of_label(self, t: Tensor, y: Tensor) -> float:
        """h(T) - sum_y p(y) h(T | y) in nats."""
        b = self._small(t, "t", self.compress_t, self.encoder_t)
        within = sum(
            float((y == k).double().mean() * self._entropy(b[y == k]).mean()) for k in torch.unique(y)
        )
        return float(self._entropy(b).mean()) - within

    def _compressed(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a = self._small(x, "x", self.compress_x, self.encoder_x)
        b = self._small(t, "t", self.compress_t, self.encoder_t)
        if len(a) != len(b):
            raise ValueError(f"x and t must have as many rows, got {len(a)} and {len(b)}.")
        return a, b

    def _small(self, x: Tensor, name: str, how: Compression, encoder: Autoencoder | None) -> Tensor:
        rows = _rows(x, name)
        if how == "ae":
            if encoder is None:
                raise ValueError(
                    f"fit comes first: the autoencoder of {name} has seen 0 rows, got {len(rows)} to encode."
                )
            return encoder.encode(rows)
        return principal_components(rows, self.dim) if how == "pca" else rows

    def _entropy(self, x: Tensor) -> Float[Tensor, " n"]:
        return entropy_terms(x, self.k, self.weighted)


def neighbour_weights(d: int, k: int) -> Float[Tensor, " k"]:
    """Weights of the neighbours 1 to k that sum to 1 and cancel the leading bias in d dimensions.

    sum_j w_j Gamma(j + 2 l / d) / Gamma(j) = 0 for l = 1 ... floor(d / 4), and w_j = 0 for j that is none of
    floor(i k / d), i = 1 ... d; of all such w the one of least norm, as good as it can be where k is too
    small for all of them. In 4 dimensions or fewer the nearest neighbour alone, as in the authors' code.
    """
    weights = torch.zeros(k, dtype=torch.float64)
    if d <= 4:
        weights[0] = 1
        return weights
    support = torch.tensor(sorted({i * k // d for i in range(1, d + 1)} - {0}), dtype=torch.float64)
    rows = [torch.ones_like(support) / k]
    for power in range(1, d // 4 + 1):
        row = (torch.lgamma(support + 2 * power / d) - torch.lgamma(support)).exp()
        rows.append(row / row.norm())
    right = torch.zeros(len(rows), dtype=torch.float64)
    right[0] = 1 / k
    found = torch.linalg.lstsq(torch.stack(rows), right, rcond=1e-6, driver="gelsd").solution
    weights[support.long() - 1] = found / found.sum()
    return weights


def entropy_terms(x: Float[Tensor, "n d"], k: int = 5, weighted: bool = True) -> Float[Tensor, " n"]:
    """What each row adds to the differential entropy of x in nats, of which they are the mean; see `LossyMI`.

    weighted: the weights of `neighbour_weights`; False takes the k-th neighbour alone. Float64.
    """
    n, d = x.shape
    if n <= k:
        raise ValueError(f"{k} neighbours need more than {k} rows, got {n}.")
    x = x.double()
    white, log_det = _whitened(x)
    r = torch.cat([_nearest(white, start, k) for start in range(0, n, CHUNK)])
    if not bool((r[:, 0] > 0).all()):
        raise ValueError(
            f"rows must differ, got {int((r[:, 0] == 0).sum())} of {n} that repeat: add noise to them."
        )
    if weighted:
        weights = neighbour_weights(d, k)
    else:
        weights = torch.zeros(k, dtype=torch.float64)
        weights[-1] = 1
    order = torch.arange(1, k + 1, dtype=torch.float64)
    volume = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    terms = torch.digamma(torch.tensor(float(n), dtype=torch.float64)) - torch.digamma(order) + volume
    return ((terms.to(r) + d * r.log()) * weights.to(r)).sum(1) - log_det


def _whitened(x: Tensor) -> tuple[Tensor, Tensor]:
    """x W with covariance I, and log |det W|."""
    centred = x - x.mean(0)
    spread, vectors = torch.linalg.eigh(centred.mT @ centred / (len(x) - 1))
    if not bool(spread[0] > 1e-12 * spread[-1]):
        raise ValueError(
            f"columns must vary and not be sums of each other, got {x.shape[1]} columns of rank"
            f" {int((spread > 1e-12 * spread[-1]).sum())}: compress to fewer dimensions."
        )
    return centred @ (vectors / spread.sqrt()), -spread.log().sum() / 2


def _nearest(x: Tensor, start: int, k: int) -> Float[Tensor, "chunk k"]:
    """Distances of some rows to their k nearest others."""
    rows = x[start : start + CHUNK]
    distance = torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist")
    index = torch.arange(len(rows), device=x.device)
    distance[index, start + index] = math.inf
    return distance.topk(k, dim=1, largest=False, sorted=True).values


def _interval(terms: Float[Tensor, " n"], seed: int, draws: int = 200) -> Estimate:
    """The mean of the rows' terms, and the middle 95 % of it over rows drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    terms = terms.cpu()
    rows = torch.randint(len(terms), (draws, len(terms)), generator=generator)
    means = terms[rows].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Estimate(float(terms.mean()), low, high)


def principal_components(x: Float[Tensor, "n d"], dim: int) -> Float[Tensor, "n dim"]:
    """The first `dim` principal components of the rows, or all of them where there are no more. Float64."""
    x = x.double()
    if x.shape[1] <= dim:
        return x
    centred = x - x.mean(0)
    vectors = torch.linalg.eigh(centred.mT @ centred).eigenvectors
    return centred @ vectors[:, -dim:]


class Autoencoder(nn.Module):
    """d -> 256 -> 64 -> dim and back, ELU between, on standardised rows."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.down = _elu_layers(width, 256, 64, dim)
        self.up = _elu_layers(dim, 64, 256, width)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.up(self.down(x))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n dim"]:
        """The codes of the rows, float64."""
        if x.shape[1] != len(self.mean):
            raise ValueError(f"rows must have the {len(self.mean)} numbers of fit, got {x.shape[1]}.")
        return self.down((x.to(self.mean) - self.mean) / self.scale).double()


def _elu_layers(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def train_autoencoder(x: Float[Tensor, "n d"], dim: int, epochs: int, seed: int) -> Autoencoder:
    """Trained to put the rows out again: Adam, rate 1e-3 falling to 0, batches of 128."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        x = x.float()
        model = Autoencoder(x.shape[1], dim).to(x.device)
        model.mean, model.scale = x.mean(0), x.std().clamp_min(1e-12)
        x = (x - model.mean) / model.scale
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        steps = epochs * math.ceil(len(x) / 128)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), device=x.device).split(128):
                loss = (model(x[rows]) - x[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@contextmanager
def noisy_activations(model: nn.Module, layers: Sequence[str], sigma: float) -> Iterator[None]:
    """Within it the named layers put out T = f(x) + Z, Z normal with standard deviation `sigma`, in training
    and in evaluation alike: what makes I(X; T) of a deterministic layer finite."""
    check_positive(sigma=sigma)

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + sigma * torch.randn_like(output)

    handles = [m.register_forward_hook(hook) for m in named(model, layers).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def noise_entropy(d: int, sigma: float) -> float:
    """Nats of d normal numbers of standard deviation sigma: I(X; T) = h(T) - this, for T with such noise."""
    check_positive(d=d, sigma=sigma)
    return d / 2 * math.log(2 * math.pi * math.e * sigma * sigma)


def _rows(x: Tensor, name: str) -> Float[Tensor, "n d"]:
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (rows, ...), none of them 0, got {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}.")
    check_numbers(x, name)
    return x.detach().reshape(len(x), -1)
