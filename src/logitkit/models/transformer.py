"""The causal transformer, small: the reference backbone for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.models.base import Backbone
from logitkit.models.vit import Block
from logitkit.ops import values_visible
from logitkit.registry import Choice, Real, Whole, part


@part(
    "transformer",
    "models",
    title="Small causal transformer",
    aliases=("gpt",),
    tasks=("sequence", "classification", "binary", "regression", "multilabel"),
    search_space={"depth": Whole(2, 6), "dim": Choice(48, 64, 96), "dropout": Real(0.0, 0.2)},
    no_gradcheck="tokens are whole numbers, which have no gradient",
)
class Transformer(Backbone):
    """A small causal transformer: the backbone for tokens, to predict each from those before it, or a class
    from all of them.

    Equation: z_0 = E[x] + P; z'_l = z_{l-1} + MSA(LN(z_{l-1})), each position attending to itself and those
    before; z_l = z'_l + MLP(LN(z'_l)); feature map = LN(z_L).

    Shapes: x (batch, tokens) whole numbers below `vocabulary`, at most as many as `input_shape` says ->
    feature map (batch, tokens, dim), a row of features per position in a sequence task; pooled to the last
    position (batch, dim) otherwise.

    Defaults: depth 2, dim 64, 4 heads, no dropout, learned positions; the sizes are for a laptop.

    Raises: ValueError for an `input_shape` that is not (tokens,), a `dim` that `heads` does not divide, a
    depth below 1, dropout outside [0, 1), a vocabulary below 2, tokens of another dtype, out of range or too
    many, or an empty batch.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2, pre-norm);
    Vaswani et al., arXiv:1706.03762.

    Not for: padding, which it does not know: give sequences of one length.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        vocabulary: int,
        depth: int = 2,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 1:
            raise ValueError(
                f"transformer reads tokens of shape (tokens,), got input_shape {self.input_shape}."
            )
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2, got {vocabulary}.")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads, got dim {dim} and heads {heads}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(0.02 * torch.randn(self.input_shape[0], dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, dropout, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.out_features = dim
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward_features(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        x = self._check(x)
        return self.norm(self.blocks(self.embedding(x) + self.position[: x.shape[1]]))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map[:, -1]

    def forward(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
        return self.pool(self.forward_features(x))

    def _check(self, x: Tensor) -> Int[Tensor, "batch tokens"]:
        most = self.input_shape[0]
        if x.ndim != 2 or not 1 <= x.shape[1] <= most or len(x) == 0:
            raise ValueError(
                f"tokens must have shape (batch, 1 to {most}) and not be empty, got {tuple(x.shape)}."
            )
        if x.is_floating_point() or x.dtype == torch.bool:
            raise ValueError(f"tokens must be whole numbers, got {x.dtype}.")
        if values_visible(x) and not 0 <= int(x.min()) <= int(x.max()) < self.vocabulary:
            raise ValueError(
                f"tokens must lie in [0, {self.vocabulary}), got {int(x.min())} to {int(x.max())}."
            )
        return x.long()
