"""AR2: a retriever learns from a ranker that it tries to fool, the ranker from what the retriever finds."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from logitkit.ops import (
    check_positive,
    check_reduction,
    mine_negatives,
    ranker_loss,
    reduce,
    retriever_loss,
)
from logitkit.registry import Real, part


@part(
    "ar2",
    "contrast",
    title="Adversarial Retriever-Ranker for dense text retrieval",
    paper="arXiv:2110.03611",
    number=84,
    tasks=("reranking",),
    search_space={"lam": Real(0.0, 1.0), "temperature": Real(0.3, 3.0, log=True)},
)
class AR2Loss(nn.Module):
    """AR2's retriever loss: a dual encoder that should find the documents which a stronger ranker, that sees
    query and document together, takes for relevant.

    Equation: over the candidates of a query, the positive (0) and hard negatives, with p = softmax(scores of
    the retriever) and r the ranker's scores: l = lam sum_j R_j log p_j - (1 - lam) sum_j softmax(r / T)_j
    log p_j, R_j = log sigmoid(r_0 - r_j) <= 0. The first, adversarial, term draws p to candidates that the
    ranker prefers to the positive, the second to what the ranker believes. r passes no gradient.

    Shapes: scores and ranker_scores (batch, candidates) real, the positive first; returns a scalar, or
    (batch,) with `reduction="none"`.

    Defaults: T = 1 as the authors' code; lam = 0.5 (their command line has 0, the paper tunes it). Both terms
    are averaged over the batch, where the code sums the first. Scores may be divided by sqrt(d), as their
    `scale_simmila` does.

    Raises: ValueError for a lam outside [0, 1], a temperature that is not positive, wrong shapes or dtypes,
    NaN, an empty batch.

    Source: Zhang, Gong, Shen, et al., ICLR 2022, arXiv:2110.03611, section 3, and the authors'
    `co_training_wiki_train.py`. The ranker's step is `ops.ranker_loss`; `AR2Trainer` alternates them, and in
    a comparison `algorithm=ar2`.

    Not for: candidates among which relevant ones go unlabelled, as both terms take them for negatives; a
    ranker that is no better than the retriever.
    """

    def __init__(self, lam: float = 0.5, temperature: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_reduction(reduction)
        if not 0 <= lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], got {lam}.")
        self.lam = lam
        self.temperature = temperature
        self.reduction = reduction

    def forward(
        self, scores: Float[Tensor, "batch candidates"], ranker_scores: Float[Tensor, "batch candidates"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        return reduce(retriever_loss(scores, ranker_scores, self.lam, self.temperature), self.reduction)


class AR2Trainer:
    """Alternate a ranker that learns from what a retriever finds, and a retriever that learns from it.

    retriever: a module with `queries(x)` and `documents(x)`, both returning (n, d) embeddings; scores are dot
        products. ranker: a module called with queries (batch, ...) and their candidates
        (batch, candidates, ...), returning (batch, candidates) scores; None trains the retriever on the mined
        negatives with cross-entropy instead.
    negatives: how many of the retriever's nearest documents each query draws from anew in every round.
    block: steps of the ranker before as many of the retriever, and so on.
    Both come trained so far that the retriever's nearest documents are worth ranking.
    """

    def __init__(
        self,
        retriever: Any,
        ranker: nn.Module | None,
        *,
        negatives: int = 15,
        lam: float = 0.5,
        temperature: float = 1.0,
        block: int = 40,
        batch_size: int = 64,
        lr: float = 1e-5,
        ranker_lr: float = 1e-6,
    ) -> None:
        check_positive(negatives=negatives, block=block, batch_size=batch_size, lr=lr, ranker_lr=ranker_lr)
        self.retriever = retriever
        self.ranker = ranker
        self.negatives = negatives
        self.block = block
        self.batch_size = batch_size
        self.loss = AR2Loss(lam, temperature)
        self.optimizer = torch.optim.AdamW(retriever.parameters(), lr=lr)
        if ranker is not None:
            self.ranker_optimizer = torch.optim.AdamW(ranker.parameters(), lr=ranker_lr)

    @torch.no_grad()
    def mine(self, queries: Tensor, documents: Tensor, positives: Int[Tensor, " queries"]) -> Tensor:
        """The rows of the nearest documents of each query as the retriever is now, its positive first."""
        q, d = self.retriever.queries(queries), self.retriever.documents(documents)
        return torch.cat([positives[:, None], mine_negatives(q, d, positives, self.negatives)], dim=1)

    def round(
        self,
        queries: Tensor,
        documents: Tensor,
        positives: Int[Tensor, " queries"],
        blocks: int = 1,
        generator: Generator | None = None,
    ) -> None:
        """Mine negatives, then `blocks` times a block of steps of the ranker and one of the retriever."""
        rows = self.mine(queries, documents, positives)
        steps = [self.retriever_step] if self.ranker is None else [self.ranker_step, self.retriever_step]
        for step in steps * blocks:
            for _ in range(self.block):
                batch = torch.randint(len(queries), (self.batch_size,), generator=generator)
                step(queries[batch], documents[rows[batch]])

    def ranker_step(self, queries: Tensor, candidates: Tensor) -> float:
        """One step of the ranker on candidates (batch, candidates, ...), the positive first; its loss."""
        assert self.ranker is not None
        loss = ranker_loss(self.ranker(queries, candidates))
        self.ranker_optimizer.zero_grad()
        loss.backward()
        self.ranker_optimizer.step()
        return loss.item()

    def retriever_step(self, queries: Tensor, candidates: Tensor) -> float:
        """One step of the retriever, with the ranker as it is; its loss."""
        q, d = self.retriever.queries(queries), self.retriever.documents(candidates.flatten(0, 1))
        scores = torch.einsum("bd,bnd->bn", q, d.view(*candidates.shape[:2], -1))
        if self.ranker is None:
            loss = ranker_loss(scores)
        else:
            with torch.no_grad():
                ranked = self.ranker(queries, candidates)
            loss = self.loss(scores, ranked)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
