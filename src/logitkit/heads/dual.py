"""The dual encoder: the reference arm for search, where queries and documents are read apart."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_positive
from logitkit.registry import Choice, part


def check_documents(documents: Tensor) -> Tensor:
    """Return floating-point `documents` (documents, features). Raises ValueError for another shape or dtype,
    or fewer than two."""
    if documents.ndim != 2 or len(documents) < 2 or not documents.is_floating_point():
        raise ValueError(
            "documents must be at least 2 rows of floating-point features, got"
            f" {tuple(documents.shape)} {documents.dtype}."
        )
    return documents


def document_encoder(features: int, hidden: int, dim: int) -> nn.Sequential:
    """One hidden layer with ReLU."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim))


@part(
    "dual",
    "heads",
    title="Dual encoder: dot products of queries and documents",
    tasks=("search",),
    search_space={"dim": Choice(32, 64, 128), "hidden": Choice(64, 128, 256)},
)
class DualHead(nn.Module):
    """Scores of all documents for a query that is encoded without seeing them: the usual first stage of a
    search, whose documents can be encoded once and indexed.

    Equation: s_j = (A x + a)^T g(d_j), g(d) = W_2 relu(W_1 d + b_1) + b_2.

    Shapes: features (batch, in_features) of queries -> scores (batch, documents); `score(features, rows)`
    with rows (batch, m), or (1, m) for all alike, of documents -> (batch, m); `queries(features)` -> (batch,
    dim) and `encode()` -> (documents, dim) are the vectors whose dot products these are. `documents`
    (documents, d) real is kept as a buffer.

    Defaults: dim = 64 and a hidden layer of 128, common sizes; torch's initialisation of `nn.Linear`.

    Raises: ValueError for sizes that are not positive, documents that are not at least 2 rows of
    floating-point features, features of another shape or dtype, or an empty batch.

    Source: Karpukhin et al., EMNLP 2020, arXiv:2004.04906, equation 1.

    Not for: relevance that depends on query and document together beyond a product of vectors; see `cross`.
    """

    documents: Tensor

    def __init__(
        self, in_features: int, documents: Float[Tensor, "documents d"], dim: int = 64, hidden: int = 128
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, dim=dim, hidden=hidden)
        self.in_features = in_features
        self.register_buffer("documents", check_documents(documents).clone())
        self.query = nn.Linear(in_features, dim)
        self.document = document_encoder(documents.shape[1], hidden, dim)

    def queries(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch dim"]:
        """A x + a."""
        return self.query(check_features(features, self.in_features))

    def encode(self) -> Float[Tensor, "documents dim"]:
        """g of every document."""
        return self.document(self.documents)

    def score(
        self, features: Float[Tensor, "batch in_features"], rows: Int[Tensor, "_ m"]
    ) -> Float[Tensor, "batch m"]:
        """Scores of the documents at `rows`."""
        return (self.queries(features)[:, None] * self.document(self.documents[rows])).sum(dim=2)

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch documents"]:
        return self.queries(features) @ self.encode().T
