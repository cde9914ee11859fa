"""The cross-encoder: the reference arm for search with a score of query and document together."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.heads.dual import check_documents, document_encoder
from logitkit.ops import check_features, check_positive
from logitkit.registry import Choice, part

PAIRS = 2**18
"""Pairs of query and document that are scored at once."""


@part(
    "cross",
    "heads",
    title="Cross-encoder: a network on query and document together",
    tasks=("search",),
    search_space={"dim": Choice(16, 32, 64), "hidden": Choice(64, 128, 256)},
)
class CrossHead(nn.Module):
    """Scores of all documents for a query by a network that sees both: it can express more than a dual
    encoder, and has to run for every pair.

    Equation: s_j = v^T relu(W [q; g_j; q * g_j] + b) + c, q = A x + a, g_j = W_2 relu(W_1 d_j + b_1) + b_2,
    with * the product of entries.

    Shapes: features (batch, in_features) of queries -> scores (batch, documents); `score(features, rows)`
    with rows (batch, m), or (1, m) for all alike, of documents -> (batch, m). `documents` (documents, d) real
    is kept as a buffer. Time is O(batch documents dim^2).

    Defaults: dim = 32 for q, g and the layer above them, and a hidden layer of 128 for documents, small
    enough to score a thousand documents in training; torch's initialisation of `nn.Linear`.

    Raises: ValueError for sizes that are not positive, documents that are not at least 2 rows of
    floating-point features, features of another shape or dtype, or an empty batch.

    Source: the scheme is that of Humeau et al., ICLR 2020, arXiv:1905.01969, section 4.2, on features in the
    place of tokens.

    Not for: many documents without something that picks those to be scored, as `search=anncur` does.
    """

    documents: Tensor

    def __init__(
        self, in_features: int, documents: Float[Tensor, "documents d"], dim: int = 32, hidden: int = 128
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, dim=dim, hidden=hidden)
        self.in_features = in_features
        self.register_buffer("documents", check_documents(documents).clone())
        self.query = nn.Linear(in_features, dim)
        self.document = document_encoder(documents.shape[1], hidden, dim)
        self.both = nn.Linear(3 * dim, dim)
        self.out = nn.Linear(dim, 1)

    def score(
        self, features: Float[Tensor, "batch in_features"], rows: Int[Tensor, "_ m"]
    ) -> Float[Tensor, "batch m"]:
        """Scores of the documents at `rows`."""
        return self._scores(
            self.query(check_features(features, self.in_features)), self.document(self.documents[rows])
        )

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch documents"]:
        q = self.query(check_features(features, self.in_features))
        some = self.document(self.documents).split(max(1, PAIRS // len(q)))
        return torch.cat([self._scores(q, g[None]) for g in some], dim=1)

    def _scores(self, q: Float[Tensor, "batch dim"], g: Float[Tensor, "_ m dim"]) -> Float[Tensor, "batch m"]:
        of_query, of_document, of_product = self.both.weight.chunk(3, dim=1)
        query, document = F.linear(q, of_query, self.both.bias)[:, None], F.linear(g, of_document)
        return self.out(F.relu(query + document + F.linear(q[:, None] * g, of_product)))[..., 0]
