"""TopTwo: the true answer and the one it is confused with, from the votes of a crowd."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.fitted import Fitted
from logitkit.ops.sphere import unit
from logitkit.registry import Choice, part
from logitkit.robust.dawid_skene import MISSING, answered, check_votes

# Items whose pairs are compared at once.
CHUNK = 256
SKILLS = (1e-3, 1 - 1e-3)


class TopTwoAnswers(NamedTuple):
    """Of each item (items,): the likeliest answer, the one it is confused with, and the probability q in
    [0.5, 1] that a worker who knows the item gives the first rather than the second."""

    first: Int[Tensor, " items"]
    second: Int[Tensor, " items"]
    clarity: Float[Tensor, " items"]


def shifted_answers(
    votes: Int[Tensor, "items workers"], num_classes: int, share: Float[Tensor, ""]
) -> Float[Tensor, "thresholds items workers"]:
    """X^k for k = 1, ..., K - 1: -1 where the answer is among the first k classes, +1 where it is not, 0
    where there is none, minus what guessing would give, share (K - 2k) / K. Workers without votes are 0."""
    k = torch.arange(1, num_classes, dtype=torch.float64, device=votes.device)[:, None, None]
    side = torch.where(votes < k, -1.0, 1.0).double().masked_fill(votes == MISSING, 0.0)
    known = (votes != MISSING).any(dim=0)
    return (side - share * (num_classes - 2 * k) / num_classes) * known


def leading_direction(shifted: Float[Tensor, "thresholds items workers"]) -> Float[Tensor, " workers"]:
    """The workers' skills up to scale: leading singular vector of each X^k, with the sign that makes most
    workers skilful, averaged over k."""
    vectors = torch.linalg.eigh(shifted.mT @ shifted).eigenvectors[..., -1]
    sign = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    return unit((sign * vectors).mean(dim=0).clamp(min=0))


def answer_differences(
    shifted: Float[Tensor, "thresholds items workers"],
    direction: Float[Tensor, " workers"],
    share: Float[Tensor, ""],
) -> Float[Tensor, "items classes"]:
    """|p| (1/K - P(a skilful worker answers k)) of every item and class, in expectation."""
    steps = (shifted @ direction / (2 * share)).T
    return torch.nn.functional.pad(steps, (1, 1)).diff(dim=1)


def most_likely_pair(
    votes: Int[Tensor, "items workers"], skill: Float[Tensor, " workers"], num_classes: int
) -> TopTwoAnswers:
    """The pair (a, b) and the q that maximise sum_i log(p_i (q [vote = a] + (1 - q) [vote = b])
    + (1 - p_i) / K), q on 501 points of [0.5, 1]. Of equally likely ones the least a, then b, then q."""
    grid = torch.linspace(0.5, 1.0, 501, dtype=torch.float64, device=votes.device)
    odds = (num_classes * skill / (1 - skill))[:, None]
    gains = torch.stack([torch.log1p(odds * grid), torch.log1p(odds * (1 - grid))])
    found = []
    for rows in votes.split(CHUNK):
        # what class a (first row) or b (second) adds to the log-likelihood at each q
        gain = torch.einsum("jik,riq->rjqk", answered(rows, num_classes), gains)
        best = gain.sort(dim=-1, descending=True, stable=True)
        (a, a2), (b, b2) = (each.unbind(-1) for each in best.indices[..., :2])
        (va, va2), (vb, vb2) = (each.unbind(-1) for each in best.values[..., :2])
        same, keep_first = a == b, va + vb2 >= va2 + vb
        value = torch.where(same, torch.maximum(va + vb2, va2 + vb), va + vb)
        at = value.argmax(dim=1, keepdim=True)
        first = torch.where(same & ~keep_first, a2, a).gather(1, at)[:, 0]
        second = torch.where(same & keep_first, b2, b).gather(1, at)[:, 0]
        found.append((first, second, grid[at[:, 0]]))
    return TopTwoAnswers(*(torch.cat(each) for each in zip(*found, strict=True)))


@part(
    "toptwo",
    "robust",
    title="Recovering Top-Two Answers and Confusion Probability in Multi-Choice Crowdsourcing",
    paper="arXiv:2301.00006",
    number=29,
    replaces="dawid_skene",
    tasks=("crowd",),
    search_space={"refine": Choice(True, False)},
    no_compile="it checks the values of the votes",
)
class TopTwo(Fitted):
    """TopTwo: labels from crowd votes on items that have a plausible wrong answer, with that answer and how
    often it is given: soft labels that say what is really ambiguous.

    Equation: worker i gives item j the answer g_j with probability p_i q_j, the confusable h_j with
    p_i (1 - q_j), and otherwise one of K at random. Stage 1: with X^k the votes as -1 (among the first k
    classes) or +1, minus their mean under guessing, E X^k has rank one; u is the mean of the leading singular
    vectors over k, and the differences D_k of X^k u / (2 s) between neighbouring k are least at g_j and
    second least at h_j. p_i = (share of i's votes that are g or h, minus 2/K) / (1 - 2/K), and
    q_j = 1/K - D_g / |p|. Stage 2 (`refine`): the pair and the q of each item by maximum likelihood given p.

    Shapes: `fit(votes)` with votes (items, workers) integer classes, -1 where there is none; `top_two(votes)`
    -> `TopTwoAnswers` of any items by the same workers, `predict(votes)` -> its first (items,),
    `transform(votes)` -> soft labels (items, num_classes), q on g and 1 - q on h, even over all classes for
    an item without votes. `skill` (workers,) holds p.

    Defaults: with stage 2, which takes p from stage 1, as in the paper; q is the likeliest of a grid of step
    0.001, where the authors' code keeps that of stage 1. Skills are kept within [0.001, 0.999] and q within
    [0.5, 1]. Everything is computed in float64. A worker without votes counts nothing.

    Raises: ValueError for fewer than 3 classes (two answers would always be the top two), votes of another
    shape or dtype, no items or no votes at all, a vote that is not a class, or use before `fit`.

    Source: Jeong and Chung, ICML 2023, arXiv:2301.00006, algorithms 1 and 2; the estimates of p and q and the
    mean over singular vectors are those of the authors' code.

    Not for: workers who answer against what they know, or who confuse classes in ways of their own (see
    `dawid_skene`).
    """

    direction: Tensor
    skill: Tensor
    share: Tensor

    def __init__(self, num_classes: int, refine: bool = True) -> None:
        super().__init__()
        if num_classes < 3:
            raise ValueError(f"num_classes must be at least 3, got {num_classes}.")
        self.num_classes = num_classes
        self.refine = refine
        for name in ("direction", "skill"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, votes: Int[Tensor, "items workers"]) -> TopTwo:
        """Estimate the skill of every worker; returns self."""
        votes = check_votes(votes, self.num_classes)
        voted = votes != MISSING
        if not bool(voted.any()):
            raise ValueError(f"votes {tuple(votes.shape)} hold no answer, only {MISSING}.")
        self.share = voted.double().mean()
        shifted = shifted_answers(votes, self.num_classes, self.share)
        self.direction = leading_direction(shifted)
        pair = self._differences(votes).sort(dim=1, stable=True).indices[:, :2]
        named = (votes[..., None] == pair[:, None]).any(dim=-1).sum(dim=0) / voted.sum(dim=0).clamp(min=1)
        guessed = 2 / self.num_classes
        self.skill = ((named.double() - guessed) / (1 - guessed)).clamp(*SKILLS)
        return self

    @torch.no_grad()
    def top_two(self, votes: Int[Tensor, "items workers"]) -> TopTwoAnswers:
        """The two likeliest answers of each item, and how much likelier the first is."""
        if not self.skill.numel():
            raise ValueError(f"toptwo must be fitted before it sees votes {tuple(votes.shape)}.")
        votes = check_votes(votes, self.num_classes, len(self.skill))
        if self.refine:
            return most_likely_pair(votes, self.skill, self.num_classes)
        least = self._differences(votes).sort(dim=1, stable=True)
        clarity = 1 / self.num_classes - least.values[:, 0] / torch.linalg.vector_norm(self.skill)
        return TopTwoAnswers(least.indices[:, 0], least.indices[:, 1], clarity.clamp(0.5, 1.0))

    def predict(self, votes: Int[Tensor, "items workers"]) -> Int[Tensor, " items"]:
        """The likeliest answer of each item."""
        return self.top_two(votes).first

    def transform(self, votes: Int[Tensor, "items workers"]) -> Float[Tensor, "items classes"]:
        """Soft labels to train on."""
        first, second, q = self.top_two(votes)
        labels = torch.zeros(len(q), self.num_classes, dtype=q.dtype, device=q.device)
        labels = labels.scatter(1, second[:, None], (1 - q)[:, None]).scatter(1, first[:, None], q[:, None])
        unseen = (votes == MISSING).all(dim=1, keepdim=True)
        return labels.masked_fill(unseen, 1 / self.num_classes).float()

    def _differences(self, votes: Tensor) -> Float[Tensor, "items classes"]:
        shifted = shifted_answers(votes, self.num_classes, self.share)
        return answer_differences(shifted, self.direction, self.share)
