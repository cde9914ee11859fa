"""Dynamic dual bank normalisation: only queries that would retrieve a hub are normalised."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logitkit.calibrate.dbnorm import DualIS
from logitkit.ops import check_positive
from logitkit.registry import Real, Whole, part


@part(
    "dual_dis",
    "calibrate",
    title="Balance Act: Mitigating Hubness in Cross-Modal Retrieval with Query and Gallery Banks",
    paper="arXiv:2310.11612",
    number=52,
    companion_of="dbnorm",
    tasks=("retrieval",),
    search_space={"beta1": Real(0.5, 50.0, log=True), "beta2": Real(0.5, 50.0, log=True), "k": Whole(1, 5)},
)
class DualDIS(DualIS):
    """Dynamic dual inverted softmax: `DualIS` where a query would retrieve a hub, and raw similarities
    elsewhere.

    Equation: as `DualIS`, but a bank's sum is subtracted only in rows whose most similar item is among the k
    most similar ones of some row of that bank; in the others that bank's factor is exp(b s) alone.

    Shapes: `fit(query_bank, gallery_bank)` and `transform(s)` as `DualIS` has them; each row of the result is
    to be ranked by itself, as rows may be normalised or not.

    Defaults: k = 1, how many items of each bank row count as likely hubs, the paper's; b1 and b2 as
    `DualIS`. In the authors' code the factor of the other rows is s itself, which has no meaning once it is
    negative; each row's order is that of s either way if neither bank acts on it. Their function also
    writes its result into the matrix it was given, which the second bank then takes for similarities; here
    the banks do not see each other.

    Raises: ValueError as `DualIS`, for a k below 1, or one above the number of gallery items.

    Source: Wang, Jian, Xue, EMNLP 2023, arXiv:2310.11612, the dual dynamic inverted softmax; Bogolin et al.,
    CVPR 2022, arXiv:2112.12777 for one bank.

    Not for: galleries of which most items are hubs, for which it is `DualIS`.
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
