"""Hebbian networks that recall several patterns at once, because patterns leave spins to one another."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops import check_numbers
from logitkit.ops.fitted import Fitted
from logitkit.registry import Choice, part

Mode = Literal["supervised", "unsupervised"]


def diluted_patterns(
    patterns: int, spins: int, dilution: float, generator: torch.Generator
) -> Float[Tensor, "patterns spins"]:
    """Random entries: 0 with probability `dilution`, else 1 or -1 alike."""
    draw = torch.rand(patterns, spins, generator=generator)
    sign = torch.where(torch.rand(patterns, spins, generator=generator) < 0.5, 1.0, -1.0)
    return torch.where(draw < dilution, 0.0, sign)


def noisy_examples(
    patterns: Float[Tensor, "patterns spins"], examples: int, quality: float, generator: torch.Generator
) -> Float[Tensor, "patterns examples spins"]:
    """Copies of the patterns, each entry with its sign kept with probability (1 + quality) / 2."""
    shape = len(patterns), examples, patterns.shape[1]
    return (
        torch.where(torch.rand(shape, generator=generator) < (1 + quality) / 2, 1.0, -1.0) * patterns[:, None]
    )


def hierarchical_state(
    patterns: Float[Tensor, "patterns spins"], generator: torch.Generator
) -> Float[Tensor, " spins"]:
    """Each spin as the first pattern that has an entry there; at random where none has."""
    state = torch.where(torch.rand(patterns.shape[1], generator=generator) < 0.5, 1.0, -1.0).to(patterns)
    for pattern in patterns.flip(0):
        state = torch.where(pattern != 0, pattern, state)
    return state


class Overlaps(NamedTuple):
    """Of each pattern: with itself, mean of xi s, and with the mean of its examples, mean of e s."""

    pattern: Float[Tensor, " patterns"]
    mean: Float[Tensor, " patterns"]


def self_consistency(
    patterns: int, dilution: float, quality: float = 1.0, examples: int = 1, beta: float = math.inf
) -> Overlaps:
    """The overlaps that infinitely many spins have at the inverse temperature `beta`, near the hierarchical
    state: n = E[e tanh(beta / ((1 - d) R) sum_nu e_nu n_nu)] and m = E[xi tanh(...)].

    R = r^2 + (1 - r^2) / M for examples of quality r, M of each pattern. The expectation is a sum over all
    values of all patterns, so that few patterns can have many examples. Float64.
    """
    d, r, m = dilution, quality, examples
    scale = (1 - d) * (r * r + (1 - r * r) / m)
    kept = [math.comb(m, k) * ((1 + r) / 2) ** k * ((1 - r) / 2) ** (m - k) for k in range(m + 1)]
    atoms = [(0.0, 0.0, d)] + [
        (sign, sign * (2 * k - m) / m, (1 - d) / 2 * p) for sign in (1.0, -1.0) for k, p in enumerate(kept)
    ]
    atoms = [atom for atom in atoms if atom[2] > 0]
    cases = torch.tensor(list(itertools.product(atoms, repeat=patterns)), dtype=torch.float64)
    xi, e, weight = cases[..., 0], cases[..., 1], cases[..., 2].prod(1, keepdim=True)
    n = r * (1 - d) * d ** torch.arange(patterns, dtype=torch.float64)
    response = torch.zeros(len(cases), 1, dtype=torch.float64)
    for _ in range(10_000):
        field = (e @ n)[:, None] / scale
        response = torch.sign(field) if math.isinf(beta) else torch.tanh(beta * field)
        new = (weight * e * response).sum(0)
        if (new - n).abs().max() < 1e-12:
            break
        n = (n + new) / 2
    return Overlaps((weight * xi * response).sum(0), n)


def retrieval_phase(patterns: int, dilution: float) -> Literal["hierarchical", "parallel"]:
    """What is stable at temperature 0 without noise: overlaps (1 - d) d^(mu - 1), of which the first
    outweighs all others together while 1 - d > d - d^K; beyond, equal ones."""
    return "hierarchical" if 1 - dilution > dilution - dilution**patterns else "parallel"


@part(
    "multitasking_hopfield",
    "theory",
    title="Parallel Learning by Multitasking Neural Networks",
    paper="arXiv:2308.04106",
    number=187,
    aliases=("multitasking_hebbian",),
    tasks=("concepts",),
    search_space={"mode": Choice("supervised", "unsupervised")},
    no_gradcheck="spins are 1 or -1",
    no_compile="the dynamics is compiled by Numba",
)
class MultitaskingHopfield(Fitted):
    """A Hebbian network of diluted patterns, which recalls several of them in parallel: the simplest model of
    learning many tasks at once, solved exactly in `self_consistency`.

    Equation: H(s) = -1/2 sum_{i != j} J_ij s_i s_j, J_ij = sum_mu e_i^mu e_j^mu / (N v), e^mu the mean of the
    examples of pattern mu ("supervised"), or J_ij = sum_mu mean_a eta_i^{mu,a} eta_j^{mu,a} / (N v)
    ("unsupervised"), v the mean of e^2 over spins and patterns. Glauber dynamics: s_i = 1 with probability
    1 / (1 + exp(-2 beta h_i)), h_i = sum_j J_ij s_j, one spin after the other.

    Shapes: `fit` takes patterns (patterns, spins) or examples (patterns, examples, spins), of -1, 0 and 1;
    `predict` and `glauber` take states (rows, spins) of -1 and 1 and return such; `field` the h_i, and
    `energy` (rows,).

    Defaults: means of the examples of each pattern. `predict` is 30 sweeps without noise, beta = inf.

    Raises: ValueError for other entries or shapes, another mode, a beta that is not positive, states before
    `fit`, an empty batch or NaN.

    Source: Agliari, Alessandrelli, Barra, Ricci-Tersenghi, arXiv:2308.04106, the Hamiltonians and
    self-consistency equations; v is (1 - d)(r^2 + (1 - r^2) / M) for many spins.

    Not for: many patterns: beyond a few the exact sums do not end.
    """

    def __init__(self, mode: Mode = "supervised", seed: int = 0) -> None:
        super().__init__()
        if mode not in ("supervised", "unsupervised"):
            raise ValueError(f"mode must be 'supervised' or 'unsupervised', got {mode!r}.")
        self.mode, self.seed = mode, seed
        self.factors: Tensor
        self.register_buffer("factors", torch.zeros(0, 0))

    def fit(self, x: Float[Tensor, "patterns *examples spins"], y: None = None) -> MultitaskingHopfield:
        """Learn the couplings, J = F^T F with the `factors` F (rows, spins); returns self."""
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise ValueError(
                f"x must have shape (patterns, spins) or (patterns, examples, spins), none empty, got"
                f" {tuple(x.shape)}."
            )
        _check_entries(x, "x", (-1, 0, 1))
        examples = x if x.ndim == 3 else x[:, None]
        mean = examples.mean(1)
        scale = math.sqrt(x.shape[-1] * max(mean.square().mean().item(), 1e-30))
        each = mean if self.mode == "supervised" else (examples / math.sqrt(examples.shape[1])).flatten(0, 1)
        self.factors = each / scale
        return self

    def field(self, state: Float[Tensor, "rows spins"]) -> Float[Tensor, "rows spins"]:
        """h_i = sum_{j != i} J_ij s_j."""
        f = self.factors.to(state)
        return (state @ f.mT) @ f - f.square().sum(0) * state

    def energy(self, state: Float[Tensor, "rows spins"]) -> Float[Tensor, " rows"]:
        """H of each row."""
        return -(state * self.field(state)).sum(1) / 2

    def glauber(
        self, state: Float[Tensor, "rows spins"], beta: float, sweeps: int
    ) -> Float[Tensor, "rows spins"]:
        """States after so many updates of every spin, in a random order, at inverse temperature beta."""
        self._check(state)
        if not beta > 0 or sweeps < 0:
            raise ValueError(f"beta must be positive and sweeps at least 0, got {beta} and {sweeps}.")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(state.shape[1], generator=generator).numpy()
        draws = torch.rand(len(state), sweeps, state.shape[1], generator=generator).numpy()
        moved = state.detach().double().cpu().numpy().copy()
        _compiled()(moved, self.factors.double().cpu().numpy().T.copy(), draws, order, beta)
        return torch.from_numpy(moved).to(state)

    def predict(self, x: Float[Tensor, "rows spins"]) -> Float[Tensor, "rows spins"]:
        """What the network recalls from each state: 30 sweeps at temperature 0."""
        return self.glauber(x, math.inf, 30)

    def _check(self, state: Tensor) -> None:
        if not self.factors.numel():
            raise ValueError(f"fit comes first, got states of shape {tuple(state.shape)} before.")
        if state.ndim != 2 or len(state) == 0 or state.shape[1] != self.factors.shape[1]:
            raise ValueError(
                f"states must have shape (rows, {self.factors.shape[1]}), got {tuple(state.shape)}."
            )
        _check_entries(state, "states", (-1, 1))


def _check_entries(x: Tensor, what: str, allowed: tuple[int, ...]) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{what} must be floating point, got {x.dtype}.")
    check_numbers(x, what)
    if not bool(torch.isin(x.detach(), torch.tensor(allowed, device=x.device, dtype=x.dtype)).all()):
        raise ValueError(
            f"{what} must hold {', '.join(map(str, allowed))}, got {x.detach().unique()[:5].tolist()}."
        )


@functools.cache
def _compiled() -> Callable[..., None]:
    from numba import njit

    return njit(cache=True)(_sweep)


def _sweep(state: Any, factors: Any, draws: Any, order: Any, beta: float) -> None:
    """Update `state` in place. factors (spins, rank): the couplings are their products."""
    own = (factors**2).sum(axis=1)
    for row in range(len(state)):
        s = state[row]
        overlap = np.zeros(factors.shape[1])
        for i in range(len(s)):
            overlap += s[i] * factors[i]
        for sweep in range(draws.shape[1]):
            for i in order:
                field = 0.0
                for k in range(len(overlap)):
                    field += factors[i, k] * overlap[k]
                field -= own[i] * s[i]
                if math.isinf(beta):
                    new = s[i] if field == 0 else math.copysign(1.0, field)
                else:
                    new = (
                        1.0
                        if draws[row, sweep, i] < 1 / (1 + math.exp(min(-2 * beta * field, 700.0)))
                        else -1.0
                    )
                if new != s[i]:
                    for k in range(len(overlap)):
                        overlap[k] += (new - s[i]) * factors[i, k]
                    s[i] = new
