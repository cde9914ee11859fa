"""Dual bank normalisation: retrieval without hubs, from banks of known queries and gallery items."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.ops import check_logits, check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import Real, part


def inverted_softmax(
    similarities: Float[Tensor, "queries gallery"], bank: Float[Tensor, "bank gallery"], beta: float
) -> Float[Tensor, "queries gallery"]:
    """log of exp(beta s(q, g)) / sum_m exp(beta bank(m, g)): similarity to a gallery item relative to how
    similar the item is to everything in the bank (Smith et al., ICLR 2017, arXiv:1702.03859)."""
    return beta * similarities - torch.logsumexp(beta * bank, dim=0)


@part(
    "dbnorm",
    "calibrate",
    title="Balance Act: Mitigating Hubness in Cross-Modal Retrieval with Query and Gallery Banks",
    paper="arXiv:2310.11612",
    number=52,
    aliases=("dual_is",),
    tasks=("retrieval",),
    search_space={"beta1": Real(0.5, 50.0, log=True), "beta2": Real(0.5, 50.0, log=True)},
)
class DualIS(Fitted):
    """Dual inverted softmax: for retrieval across modalities in which a few gallery items, the hubs, come up
    for every query. It needs no training, only similarities to known queries and items.

    Equation: log s'(q, g) = b1 s(q, g) - log sum_m exp(b1 Q(m, g)) + b2 s(q, g) - log sum_m exp(b2 G(m, g)),
    with s the similarity of query q and gallery item g, Q(m, g) that of bank query m and G(m, g) that of bank
    gallery item m with g.

    Shapes: `fit(query_bank, gallery_bank)` with Q (bank queries, gallery) and G (bank items, gallery), both
    against the gallery that will be searched; `transform(s)` with s (queries, gallery) -> log s' of the same
    shape, in at least float32, to be ranked within each row. Entries of a bank that are -inf are left out:
    write them where a bank item is the gallery item itself.

    Defaults: b1 = 1/1.99 and b2 = 3, those of the authors' code; they depend on the scale of the similarities
    and are best tuned on validation queries (20 is usual for cosines).

    Raises: ValueError for a beta that is not positive, similarities or banks that are not (rows, gallery) of
    the fitted width, NaN, an empty bank or batch, a gallery item that a bank leaves out altogether, or use
    before `fit`.

    Source: Wang, Jian, Xue, EMNLP 2023, arXiv:2310.11612, the dual inverted softmax. The function released
    with it takes the gallery bank where the test similarities belong; this is the formula.

    Not for: small banks, or banks from other data than the queries; a gallery that changes by the query.
    """

    query_log_sum: Tensor
    gallery_log_sum: Tensor

    def __init__(self, beta1: float = 1 / 1.99, beta2: float = 3.0) -> None:
        super().__init__()
        check_positive(beta1=beta1, beta2=beta2)
        self.beta1 = beta1
        self.beta2 = beta2
        self.register_buffer("query_log_sum", torch.empty(0, dtype=torch.float64))
        self.register_buffer("gallery_log_sum", torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(
        self, query_bank: Float[Tensor, "queries gallery"], gallery_bank: Float[Tensor, "items gallery"]
    ) -> DualIS:
        """Sum up the banks; returns self."""
        query_bank = check_logits(query_bank, "query_bank")
        gallery_bank = check_logits(gallery_bank, "gallery_bank", classes=query_bank.shape[1])
        self.query_log_sum = self._log_sum("query_bank", query_bank, self.beta1)
        self.gallery_log_sum = self._log_sum("gallery_bank", gallery_bank, self.beta2)
        return self

    def transform(self, similarities: Float[Tensor, "queries gallery"]) -> Float[Tensor, "queries gallery"]:
        """log s'."""
        s = self._checked(similarities)
        return (self.beta1 + self.beta2) * s - (self.query_log_sum + self.gallery_log_sum).to(s)

    def _checked(self, similarities: Tensor) -> Tensor:
        if not self.query_log_sum.numel():
            raise ValueError(
                f"dbnorm must be fitted to its banks before it sees similarities {tuple(similarities.shape)}."
            )
        return check_logits(similarities, "similarities", classes=len(self.query_log_sum))

    @staticmethod
    def _log_sum(name: str, bank: Tensor, beta: float) -> Float[Tensor, " gallery"]:
        log_sum = torch.logsumexp(beta * bank.double(), dim=0)
        if not bool(torch.isfinite(log_sum).all()):
            column = int((~torch.isfinite(log_sum)).nonzero()[0])
            raise ValueError(f"{name} has no finite similarity to gallery item {column}.")
        return log_sum


class DualDIS(DualIS):
    """Dynamic `DualIS`: only queries that would retrieve a hub are normalised.

    Equation: as `DualIS`, but a bank's sum is subtracted only in rows whose most similar item is among the k
    most similar ones of some row of that bank; in the others that bank's factor is exp(b s) alone.

    k: how many items of each bank row count as likely hubs; 1 is the paper's. In the authors' code the factor
    of the other rows is s itself, which has no meaning once it is negative; each row's order is that of s
    either way if neither bank acts on it. Their function also writes its result into the matrix it was
    given, which the second bank then takes for similarities; here the banks do not see each other.

    Source: arXiv:2310.11612, the dual dynamic inverted softmax; Bogolin et al., CVPR 2022, arXiv:2112.12777
    for one bank.
    """

    query_hubs: Bool[Tensor, " gallery"]
    gallery_hubs: Bool[Tensor, " gallery"]

    def __init__(self, beta1: float = 1 / 1.99, beta2: float = 3.0, k: int = 1) -> None:
        super().__init__(beta1, beta2)
        check_positive(k=k)
        self.k = k
        self.register_buffer("query_hubs", torch.empty(0, dtype=torch.bool))
        self.register_buffer("gallery_hubs", torch.empty(0, dtype=torch.bool))

    @torch.no_grad()
    def fit(
        self, query_bank: Float[Tensor, "queries gallery"], gallery_bank: Float[Tensor, "items gallery"]
    ) -> DualDIS:
        """Sum up the banks and note what they retrieve; returns self."""
        super().fit(query_bank, gallery_bank)
        self.query_hubs = self._retrieved(query_bank)
        self.gallery_hubs = self._retrieved(gallery_bank)
        return self

    def transform(self, similarities: Float[Tensor, "queries gallery"]) -> Float[Tensor, "queries gallery"]:
        s = self._checked(similarities)
        first = s.argmax(dim=1)
        by_queries = torch.where(self.query_hubs[first][:, None], self.query_log_sum.to(s), 0.0)
        by_gallery = torch.where(self.gallery_hubs[first][:, None], self.gallery_log_sum.to(s), 0.0)
        return (self.beta1 + self.beta2) * s - (by_queries + by_gallery)

    def _retrieved(self, bank: Tensor) -> Bool[Tensor, " gallery"]:
        if self.k > bank.shape[1]:
            raise ValueError(f"k must be at most the {bank.shape[1]} gallery items, got {self.k}.")
        top = bank.topk(self.k, dim=1)
        found = top.indices[top.values > -math.inf]
        return torch.zeros(bank.shape[1], dtype=torch.bool, device=bank.device).index_fill(0, found, True)
