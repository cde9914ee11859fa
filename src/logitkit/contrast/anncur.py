"""ANNCUR: nearest neighbours under an expensive score, from a few exact scores per query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_logits, check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import Real, Whole, part

Score = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """The best items of each query (batch, k), best first, their exact scores, and how many scores each query
    cost."""

    items: Int[Tensor, "batch k"]
    scores: Float[Tensor, "batch k"]
    calls: int


@part(
    "anncur",
    "contrast",
    title="Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix Factorization",
    paper="arXiv:2210.12579",
    number=41,
    tasks=("search",),
    search_space={"anchors": Whole(10, 80), "rcond": Real(1e-6, 0.1, log=True)},
    no_gradcheck="a search returns exact scores of the items it picks, not a function of its input",
    no_compile="a search calls back for scores",
)
class ANNCUR(Fitted):
    """Search with a cross-encoder, or any black-box score of (query, item), without scoring all items: a CUR
    factorisation of the score matrix replaces the dual encoder that would have to be trained for it.

    Equation: R (k_q, n) holds the exact scores of k_q anchor queries and all n items, I are k_i random anchor
    items, E = pinv(R[:, I]) R (k_i, n) is fitted once. For a query, c = (f(q, i))_{i in I} costs k_i scores
    and c E approximates all n. The best `budget` - k_i other items by c E are scored exactly, and the answer
    is the best k of everything scored.

    Shapes: `fit(scores)` with R (queries, items); `approx_scores(c)` with c (batch, anchors) -> (batch,
    items); `search(score, k, budget)` -> `Found`, where `score(ids)` returns exact scores (batch, m) for the
    batch of queries: first of the anchor items, ids (1, m), then of each query's own, ids (batch, m).
    `anchor_items` (anchors,) and `embeddings` (anchors, items) are buffers: c and the columns of `embeddings`
    are vectors whose inner product an approximate index may search; pass what it finds as `retrieve`.

    Defaults: 50 anchor items drawn from `seed`; a budget of 100 spends half on anchors, as the paper does.
    In a comparison (`search=anncur`) the anchor queries are those of training. `rcond` drops singular values
    below that share of the largest; None is machine precision.

    Raises: ValueError for settings that are not positive, more anchors than items, scores of another shape or
    dtype, NaN, a budget that does not lie between the anchors and the items, a k beyond the budget, or use
    before `fit`.

    Source: Yadav, Monath, Angell, Zaheer, McCallum, EMNLP 2022, arXiv:2210.12579, section 3. The authors'
    code retrieves anchor items like others and ranks only what was retrieved; here no score is spent twice.

    Not for: fewer anchor queries than about twice the anchor items, where the pseudo-inverse amplifies noise
    (raise `rcond`); probabilities in place of raw scores, whose normalisers raise the rank.
    """

    anchor_items: Tensor
    embeddings: Tensor

    def __init__(
        self, anchors: int = 50, rcond: float | None = None, seed: int = 0, budget: int = 100
    ) -> None:
        super().__init__()
        check_positive(anchors=anchors, budget=budget)
        if rcond is not None:
            check_positive(rcond=rcond)
        self.anchors = anchors
        self.rcond = rcond
        self.seed = seed
        self.budget = budget
        self.register_buffer("anchor_items", torch.empty(0, dtype=torch.long))
        self.register_buffer("embeddings", torch.empty(0, 0))

    @torch.no_grad()
    def fit(self, scores: Float[Tensor, "queries items"]) -> ANNCUR:
        """Choose the anchor items and embed all items; returns self."""
        r = check_logits(scores, "scores")
        if self.anchors > r.shape[1]:
            raise ValueError(f"{self.anchors} anchors need as many items, got scores {tuple(r.shape)}.")
        order = torch.randperm(r.shape[1], generator=torch.Generator().manual_seed(self.seed))
        self.anchor_items = order[: self.anchors].sort().values.to(r.device)
        exact = r.double()
        inverse = torch.linalg.pinv(exact[:, self.anchor_items], rtol=self.rcond)
        self.embeddings = (inverse @ exact).to(r.dtype)
        return self

    def approx_scores(self, anchor_scores: Float[Tensor, "batch anchors"]) -> Float[Tensor, "batch items"]:
        """c E: every item's approximate score, from the exact scores of the anchor items."""
        c = check_logits(anchor_scores, "anchor_scores", classes=self._fitted().shape[0])
        return c.to(self.embeddings) @ self.embeddings

    @torch.no_grad()
    def search(
        self,
        score: Score,
        k: int,
        budget: int | None = None,
        retrieve: Callable[[Tensor, int], Int[Tensor, "batch candidates"]] | None = None,
    ) -> Found:
        """The best `k` items of each query, from `budget` exact scores a query, or those of the settings.

        retrieve: (c, m) -> ids (batch, m), the m items nearest to c by inner product, as an approximate index
        gives them. The exact m are found without it.
        """
        anchors, n = self._fitted().shape
        budget = self.budget if budget is None else budget
        if not (anchors < budget <= n and 1 <= k <= budget):
            raise ValueError(
                f"search needs anchors < budget <= items and 1 <= k <= budget, got {anchors} anchors, budget"
                f" {budget}, {n} items and k {k}."
            )
        rest = budget - anchors
        ids = self.anchor_items[None]
        c = check_logits(score(ids), "scores", classes=anchors)
        if retrieve is None:
            approximate = self.approx_scores(c).index_fill(1, self.anchor_items, -torch.inf)
            others = approximate.topk(rest, dim=1).indices
        else:
            near = retrieve(c, budget)
            known = torch.isin(near, self.anchor_items)
            # nearest first among those that are no anchors
            others = near.gather(1, known.long().sort(dim=1, stable=True).indices[:, :rest])
        items = torch.cat([ids.expand(len(c), -1), others], dim=1)
        scores = torch.cat([c, score(others).to(c)], dim=1)
        best = scores.topk(k, dim=1)
        return Found(items.gather(1, best.indices), best.values, items.shape[1])

    @property
    def fitted(self) -> bool:
        return self.anchor_items.numel() > 0

    def _fitted(self) -> Float[Tensor, "anchors items"]:
        if not self.fitted:
            raise ValueError(f"anncur must be fitted before it searches, with {self.anchors} anchors.")
        return self.embeddings


def topk_recall(found: Int[Tensor, "queries found"], scores: Float[Tensor, "queries items"], k: int) -> float:
    """The share of each query's `k` best items by `scores` that are among those found, averaged."""
    best = scores.topk(k, dim=1).indices
    return (best[:, :, None] == found[:, None]).any(dim=2).double().mean().item()


def recall_vs_cost(
    anchor_scores: Float[Tensor, "anchors items"],
    scores: Float[Tensor, "queries items"],
    budgets: Sequence[int],
    k: int = 1,
    seed: int = 0,
) -> list[float]:
    """`topk_recall` of ANNCUR for every budget, half of it spent on anchors, on queries whose exact scores of
    all items are known."""
    found = []
    for budget in budgets:
        part = ANNCUR(budget // 2, seed=seed).fit(anchor_scores)
        search = part.search(lambda ids: scores.gather(1, ids.expand(len(scores), -1)), k, budget)
        found.append(topk_recall(search.items, scores, k))
    return found
