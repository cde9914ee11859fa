"""NGAME: batches of examples that are alike, so that each finds its hard negatives in its own batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import Sampler

from logitkit.ops import balanced_clusters, check_positive
from logitkit.registry import Choice, Whole, part


class NGAMESampler(Sampler[list[int]]):
    """Batches of random whole clusters of similar examples, as `batch_sampler` of a `DataLoader`.

    Until `update(embeddings)` has been called, batches are random. Every epoch visits each of `n` examples
    once. `state_dict` holds the clusters; `set_epoch` chooses the shuffle, which otherwise moves on alone.

    >>> loader = DataLoader(dataset, batch_sampler=(sampler := NGAMESampler(len(dataset), 256)))
    >>> sampler.update(embeddings)  # every few epochs, from the current encoder

    Raises: ValueError for sizes below 1, or a batch that is not a multiple of the cluster.
    """

    def __init__(self, n: int, batch_size: int, cluster_size: int = 8, seed: int = 0) -> None:
        check_positive(n=n, batch_size=batch_size, cluster_size=cluster_size)
        if batch_size % cluster_size:
            raise ValueError(
                f"batch_size must be a multiple of cluster_size, got {batch_size} and {cluster_size}."
            )
        self.n, self.batch_size, self.cluster_size, self.seed = n, batch_size, cluster_size, seed
        self.epoch = 0
        self.clusters: Tensor | None = None
        self.rest = torch.empty(0, dtype=torch.long)

    def update(self, embeddings: Float[Tensor, "n d"]) -> NGAMESampler:
        """Cluster the examples anew by their embeddings. Returns self."""
        if len(embeddings) != self.n:
            raise ValueError(f"embeddings must have {self.n} rows, got {len(embeddings)}.")
        clusters = balanced_clusters(embeddings.cpu(), self.cluster_size, self._generator("clusters"))
        whole = [rows for rows in clusters if len(rows) == self.cluster_size]
        self.clusters = torch.stack(whole) if whole else torch.empty(0, self.cluster_size, dtype=torch.long)
        short = [rows for rows in clusters if len(rows) < self.cluster_size]
        self.rest = torch.cat(short) if short else torch.empty(0, dtype=torch.long)
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next pass shuffles for."""
        self.epoch = epoch

    def order(self) -> Int[Tensor, " n"]:
        """The examples of this epoch in the order they are visited; the incomplete cluster comes last."""
        generator = self._generator("order")
        if self.clusters is None:
            return torch.randperm(self.n, generator=generator)
        shuffled = self.clusters[torch.randperm(len(self.clusters), generator=generator)]
        return torch.cat([shuffled.flatten(), self.rest])

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.order().split(self.batch_size)
        self.epoch += 1
        return iter([batch.tolist() for batch in batches])

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "clusters": self.clusters, "rest": self.rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.clusters, self.rest = state["epoch"], state["clusters"], state["rest"]

    def _generator(self, purpose: str) -> Generator:
        key = (self.seed * 1_000_003 + self.epoch) * 2 + (purpose == "order")
        return torch.Generator().manual_seed(key)


@part(
    "ngame",
    "train",
    title="NGAME: Negative Mining-aware Mini-batching for Extreme Classification",
    paper="arXiv:2207.04452",
    number=40,
    tasks=("classification", "multilabel"),
    search_space={"cluster_size": Choice(2, 4, 8, 16), "refresh": Whole(1, 10)},
)
class NGAME:
    """Negative-mining-aware batches: for losses whose negatives come from the batch, over so many labels that
    a random batch holds none that are hard.

    Equation: every `refresh` epochs all training examples are embedded with the current network and cut into
    clusters of C = `cluster_size` by balanced 2-means on their directions; each epoch shuffles the clusters,
    and a batch of B is B / C of them whole. Steps are the ordinary ones.

    Shapes: an algorithm of the engine, `algorithm=ngame`; the batch size of the recipe must be a multiple of
    C. `NGAMESampler` is the same for any training loop, with embeddings (n, d). The clustering costs
    O(n d log(n / C)) and one pass of the network over the training rows.

    Defaults: clusters of 8 anew every 5 epochs, after one epoch of random batches; the paper starts with
    small clusters and lets them grow, its defaults depend on the data set.

    Raises: ValueError for sizes below 1, or a batch size that is not a multiple of the cluster size.

    Source: Dahiya et al., WSDM 2023, arXiv:2207.04452, section 3 and algorithm 1. The authors' code makes
    a power of two of clusters, of sizes that may differ by one; here all but the last have C rows. Its loss
    is `contrast.TripletOHNM`.

    Not for: losses that see all classes anyway, which gain nothing; batch normalisation, whose statistics
    such batches bias.
    """

    def __init__(self, cluster_size: int = 8, refresh: int = 5, warmup: int = 1) -> None:
        check_positive(cluster_size=cluster_size, refresh=refresh)
        if not (isinstance(warmup, int) and warmup >= 0):
            raise ValueError(f"warmup must be a whole number of at least 0, got {warmup!r}.")
        self.cluster_size, self.refresh, self.warmup = cluster_size, refresh, warmup
        self._state: dict[str, Any] = {
            "epoch": -1,
            "clusters": None,
            "rest": torch.empty(0, dtype=torch.long),
        }

    def step(self, trainer: Any, batch: Any) -> Tensor:
        """An ordinary step."""
        return trainer.standard_step(batch)

    def order(self, trainer: Any, epoch: int) -> Int[Tensor, " n"]:
        """The training rows in the order of this epoch, with new clusters where they are due."""
        recipe = trainer.recipe
        sampler = NGAMESampler(trainer.rows, recipe.batch_size, self.cluster_size, recipe.seed)
        sampler.load_state_dict(self._state)
        due = epoch >= self.warmup and (epoch - self.warmup) % self.refresh == 0
        if due and sampler.epoch != epoch:  # a resumed epoch keeps the clusters it had
            sampler.epoch = epoch
            sampler.update(trainer.embeddings())
        sampler.epoch = epoch
        self._state = sampler.state_dict()
        return sampler.order()

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state
