"""Scores as utilities: what a softmax network's training does to them, and probabilities made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_batch, check_logits, check_positive, draw_uniform
from logitkit.registry import Choice, part

Rival = Literal["expected", "sampled", "argmax"]
LEAST, MOST = 1e-3, 1e3


def draw(probabilities: Float[Tensor, "batch outcomes"], generator: torch.Generator | None) -> Tensor:
    """One outcome of each row, (batch,)."""
    point = draw_uniform((len(probabilities), 1), probabilities, generator)
    below = probabilities.cumsum(dim=1)
    return torch.searchsorted(below, point * below[:, -1:], right=True)[:, 0].clamp(
        max=probabilities.shape[1] - 1
    )


def rival_loss(
    utilities: Float[Tensor, "batch outcomes"],
    target: Int[Tensor, " batch"],
    rival: Rival = "expected",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """Utility of a rival minus that of the revealed choice, per row; descending it raises the choice against
    the rival.

    rival "expected" is every outcome by its softmax probability, held constant: the gradient is that of
    -log softmax(u)_y. "sampled" is one outcome drawn from the softmax, whose gradient is the same on average.
    "argmax" is the best outcome: the update of the structured perceptron.

    Raises: ValueError for another rival, wrong shapes or dtypes, NaN, labels out of range, an empty batch.
    """
    if rival not in ("expected", "sampled", "argmax"):
        raise ValueError(f"rival must be 'expected', 'sampled' or 'argmax', got {rival!r}.")
    u, y = check_batch(utilities, target)
    chosen = u.gather(1, y[:, None])[:, 0]
    p = u.detach().softmax(dim=1)
    if rival == "expected":
        return torch.where(p > 0, p * u, 0.0).sum(dim=1) - chosen
    other = draw(p, generator) if rival == "sampled" else p.argmax(dim=1)
    return u.gather(1, other[:, None])[:, 0] - chosen


def utility_gradient(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, " batch"],
    rival: Rival = "expected",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """The direction in which learning moves each parameter of `model`: the mean over the batch of
    grad u(x, y) - grad u(x, rival), u = model(x) (batch, outcomes). See `rival_loss`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gain = -rival_loss(model(x), y, rival, generator).mean()
    return torch.autograd.grad(gain, parameters)


def decode(
    probabilities: Float[Tensor, "batch candidates"],
    rule: Literal["map", "sample", "mbr"] = "map",
    gain: Float[Tensor, "candidates candidates"] | Float[Tensor, "batch candidates candidates"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " batch"]:
    """The candidate to answer with: the likeliest ("map"), one drawn at random ("sample"), or the one with
    the highest expected gain ("mbr", minimum Bayes risk), gain[i, j] being that of answering i where j is
    right. Only "map" is the same under every monotone transform of the scores."""
    p = check_logits(probabilities, "probabilities")
    if rule == "map":
        return p.argmax(dim=1)
    if rule == "sample":
        return draw(p, generator)
    if rule != "mbr":
        raise ValueError(f"rule must be 'map', 'sample' or 'mbr', got {rule!r}.")
    if gain is None or gain.shape[-2:] != (p.shape[1], p.shape[1]):
        shape = None if gain is None else tuple(gain.shape)
        raise ValueError(f"rule 'mbr' needs a gain ({p.shape[1]}, {p.shape[1]}), got {shape}.")
    return (gain.to(p) @ p[:, :, None])[..., 0].argmax(dim=1)


@part(
    "utility_probability",
    "calibrate",
    title="Utility-Probability Duality of Neural Networks",
    paper="arXiv:2305.14859",
    number=26,
    tasks=("sequence",),
    needs=("lengths",),
    search_space={"length_norm": Choice(False, True)},
)
class UtilityToProbability(nn.Module):
    """Probabilities over whole outputs from a sequence model's scores, read as utilities: for decisions that
    need probabilities (sampling, expectations, minimum Bayes risk) where the model's own make poor samples.

    Equation: P_k(y | x) = exp(k U(x, y)) / sum_y' exp(k U(x, y')) over a set of candidates y', U the sequence
    score sum_t log p(y_t | y_<t, x), divided by the length of y if `length_norm`. k minimises the mean of
    -log P_k(reference) over held-out sets ("nll"), or maximises the expected score of a sample ("score").

    Shapes: `fit(utilities, y)` with utilities (batch, candidates), -inf where a row has fewer, and the
    reference's position y (batch,); `transform(utilities)` -> probabilities (batch, candidates), in at least
    float32. Both take `lengths` (batch, candidates) with `length_norm`, and `fit` takes `score` (batch,
    candidates), by default 1 for the reference and 0 for the rest. Candidates must be distinct: enumerate
    them, or remove repeated ones of a sample. `decode` decides by the result.

    Defaults: k is fitted, within [0.001, 1000], and 1, the model's own softmax over the candidates, before.
    By "score" k is the least of 121 values, evenly spaced in log k, that reaches the best score.

    Raises: ValueError for a k that is not positive, an unknown criterion, missing lengths, wrong shapes or
    dtypes, NaN, a reference out of range or of utility -inf, an empty batch.

    Source: Huang and Yuan, arXiv:2305.14859, for the reading of scores as utilities and the identity behind
    `rival_loss`. The paper's own equation from utilities to probabilities is not available to us: the family
    P_k is a stand-in for it.

    Not for: tokens rather than sequences (see `temperature`); a k fitted on the data that judges it.
    """

    k: Tensor

    def __init__(
        self,
        k: float | None = None,
        length_norm: bool = False,
        criterion: Literal["nll", "score"] = "nll",
    ) -> None:
        super().__init__()
        if criterion not in ("nll", "score"):
            raise ValueError(f"criterion must be 'nll' or 'score', got {criterion!r}.")
        if k is not None:
            check_positive(k=k)
        self.fixed = k is not None
        self.length_norm = length_norm
        self.criterion = criterion
        self.register_buffer("k", torch.tensor(1.0 if k is None else k, dtype=torch.float64))

    @torch.no_grad()
    def fit(
        self,
        utilities: Float[Tensor, "batch candidates"],
        y: Int[Tensor, " batch"],
        lengths: Int[Tensor, "batch candidates"] | None = None,
        score: Float[Tensor, "batch candidates"] | None = None,
    ) -> UtilityToProbability:
        """Find k on held-out candidates and references, unless it was given; returns self."""
        utilities, y = check_batch(utilities, y)
        u = self._utilities(utilities, lengths).double()
        reference = u.gather(1, y[:, None])
        if not bool(torch.isfinite(reference).all()):
            row = int((~torch.isfinite(reference)).nonzero()[0, 0])
            raise ValueError(f"the reference of row {row} has the utility {float(reference[row])}.")
        if not self.fixed:
            if score is None:
                score = torch.zeros_like(u).scatter(1, y[:, None], 1.0)
            k = _likeliest(u, reference) if self.criterion == "nll" else _best(u, score.to(u))
            self.k = torch.tensor(k, dtype=torch.float64, device=u.device)
        return self

    def transform(
        self,
        utilities: Float[Tensor, "batch candidates"],
        lengths: Int[Tensor, "batch candidates"] | None = None,
    ) -> Float[Tensor, "batch candidates"]:
        """P_k."""
        return torch.softmax(self.k * self._utilities(check_logits(utilities), lengths), dim=1)

    def _utilities(self, u: Tensor, lengths: Tensor | None) -> Float[Tensor, "batch candidates"]:
        if not self.length_norm:
            return u
        if lengths is None or lengths.shape != u.shape or bool((lengths < 1).any()):
            shape = None if lengths is None else tuple(lengths.shape)
            raise ValueError(
                f"length_norm needs lengths of at least 1 of shape {tuple(u.shape)}, got {shape}."
            )
        return u / lengths


def _likeliest(u: Float[Tensor, "batch candidates"], reference: Float[Tensor, "batch 1"]) -> float:
    """argmin_k of the mean -log P_k(reference), which is convex: bisection of its slope in log k."""
    known = torch.isfinite(u)
    away = torch.where(known, u - reference, 0.0)

    def slope(k: float) -> float:
        p = (k * torch.where(known, away, -torch.inf)).softmax(dim=1)
        return (p * away).sum(dim=1).mean().item()

    return _root(slope)


def _root(slope: Callable[[float], float]) -> float:
    """Where the increasing `slope` is 0, within the bounds, to the last digits."""
    low, high = LEAST, MOST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return high


def _best(u: Float[Tensor, "batch candidates"], score: Float[Tensor, "batch candidates"]) -> float:
    """The least k of a logarithmic grid with the highest expected score."""
    grid = torch.logspace(-3, 3, 121, dtype=u.dtype, device=u.device)
    expected = torch.stack([((k * u).softmax(dim=1) * score).sum(dim=1).mean() for k in grid])
    return grid[expected.argmax()].item()
