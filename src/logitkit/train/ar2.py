"""AR2 as a training procedure: a ranker learns from what the network finds, and teaches it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_positive, mine_negatives, ranker_loss, retriever_loss
from logitkit.registry import Real, Whole, part


@part(
    "ar2",
    "train",
    title="Adversarial Retriever-Ranker for dense text retrieval",
    paper="arXiv:2110.03611",
    number=84,
    companion_of="ar2",
    tasks=("search",),
    search_space={
        "lam": Real(0.0, 1.0), "temperature": Real(0.3, 3.0, log=True), "negatives": Whole(5, 30),
        "warmup": Real(0.2, 0.7),
    },
)  # fmt: skip
class AR2:
    """Adversarial retriever and ranker: a dual encoder that finds documents is taught by a cross-encoder that
    ranks what it finds, for searches in which the dual encoder alone mistakes the nearest documents.

    Equation: up to the share `warmup` of the budget, steps are the ordinary ones. Then every query's
    candidates are its document and the `negatives` others that the network scores highest. The ranker takes
    steps of cross-entropy over them, for the share `ranker_warmup` of the budget. Then `block` steps of the
    ranker and `block` of the network alternate, the latter on the loss of `contrast.AR2Loss` with `lam` and
    `temperature`; candidates are found anew before each block of the ranker.

    Shapes: an algorithm of the engine, `algorithm=ar2`, for a search with `head=dual`. The ranker is the
    recipe's model with `head=cross`, trained by a second optimiser with the recipe's settings and thrown away
    at the end. Every step of either counts as one.

    Defaults: 15 negatives and blocks of 40 steps as in the authors' commands; lam = 0.5 and T = 1, see
    `contrast.AR2Loss`; the shares, 0.4 and 0.2, are logitkit's.

    Raises: ValueError for sizes or a temperature that are not positive, a lam outside [0, 1], shares that are
    negative or leave nothing, a network that is no dual encoder, or as many negatives as documents.

    Source: Zhang, Gong, Shen, et al., ICLR 2022, arXiv:2110.03611, section 3 and algorithm 1.

    Not for: a ranker that is no better than the retriever, which then unlearns; few steps, of which the
    ranker takes a share.
    """

    def __init__(
        self,
        negatives: int = 15,
        lam: float = 0.5,
        temperature: float = 1.0,
        block: int = 40,
        warmup: float = 0.4,
        ranker_warmup: float = 0.2,
    ) -> None:
        check_positive(negatives=negatives, temperature=temperature, block=block)
        if not 0 <= lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], got {lam}.")
        if not (warmup >= 0 and ranker_warmup >= 0 and warmup + ranker_warmup < 1):
            raise ValueError(
                f"warmup and ranker_warmup must be shares of the budget that leave some, got {warmup} and"
                f" {ranker_warmup}."
            )
        self.negatives, self.lam, self.temperature, self.block = negatives, lam, temperature, block
        self.warmup, self.ranker_warmup = warmup, ranker_warmup
        self.ranker: Any = None
        self.optimizer: Any = None
        self.mined = torch.empty(0, dtype=torch.long)
        self.turns = 0
        self._saved: dict[str, Any] = {}

    def check(self, network: Any) -> None:
        """Raise ValueError for a network that it cannot train."""
        head = network.head
        if not hasattr(head, "encode"):
            raise ValueError(
                f"it trains a dual encoder of queries and documents, head=dual, not {type(head).__name__}."
            )
        if self.negatives >= len(head.documents):
            raise ValueError(f"of {len(head.documents)} documents, {self.negatives} cannot be negatives.")

    def step(self, trainer: Any, batch: Any) -> Tensor:
        """A step of the network or of the ranker; its loss, detached."""
        share = trainer.share
        if share < self.warmup:
            return trainer.standard_step(batch)
        if self.ranker is None:
            self._begin(trainer)
        alternate = share >= self.warmup + self.ranker_warmup
        turn = self.turns % (2 * self.block)
        if not len(self.mined) or (alternate and turn == 0):
            self.mined = self.mine(trainer)
        self.turns += alternate
        candidates = torch.cat([batch.y[:, None], self.mined[batch.ids]], dim=1)
        if alternate and turn >= self.block:
            return self._network_step(trainer, batch, candidates)
        return self._ranker_step(trainer, batch, candidates)

    @torch.no_grad()
    def mine(self, trainer: Any) -> Int[Tensor, "rows negatives"]:
        """The documents that the network scores highest for each training query, but for the right one."""
        head = trainer.network.head
        queries = head.queries(trainer.embeddings())
        return mine_negatives(queries, head.encode(), trainer.labels, self.negatives)

    def _network_step(self, trainer: Any, batch: Any, candidates: Tensor) -> Tensor:
        self.ranker.eval()
        with trainer.autocast():
            with torch.no_grad():
                ranked = scores_of(self.ranker, batch.x, candidates)
            found = scores_of(trainer.network, batch.x, candidates)
            loss = retriever_loss(found, ranked, self.lam, self.temperature).mean()
        return trainer.update(loss)

    def _ranker_step(self, trainer: Any, batch: Any, candidates: Tensor) -> Tensor:
        self.ranker.train()
        with trainer.autocast():
            loss = ranker_loss(scores_of(self.ranker, batch.x, candidates))
        self.optimizer.zero_grad()
        loss.backward()
        if trainer.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.ranker.parameters(), trainer.recipe.clip)
        for mine, theirs in zip(self.optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
            mine["lr"] = theirs["lr"]
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        if self.ranker is None:
            return {}
        return {
            "ranker": self.ranker.state_dict(), "optimizer": self.optimizer.state_dict(),
            "mined": self.mined, "turns": self.turns,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    def _begin(self, trainer: Any) -> None:
        """The ranker and its optimiser, those of a checkpoint if there is one."""
        self.ranker, like = trainer.sibling(head="cross"), trainer.optimizer
        takes = inspect.signature(type(like)).parameters
        settings = {k: v for k, v in like.defaults.items() if k in takes}
        self.optimizer = type(like)(self.ranker.parameters(), **settings)
        if self._saved:
            self.ranker.load_state_dict(self._saved["ranker"])
            self.optimizer.load_state_dict(self._saved["optimizer"])
            self.mined, self.turns = self._saved["mined"].to(trainer.labels.device), self._saved["turns"]


def scores_of(
    network: Any, x: Float[Tensor, "batch ..."], rows: Int[Tensor, "batch m"]
) -> Float[Tensor, "batch m"]:
    """The network's scores of the documents at `rows`."""
    return network.head.score(network.embed(x), rows)
