"""The causal transformer, small: the reference backbone for tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.attention import SoftmaxAttention
from logitkit.models.base import Backbone
from logitkit.models.vit import Block, Layers, Make, feed_forward
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
    position="rope" turns queries and keys instead, and with it or "none" inputs may be longer than
    `input_shape` says. `attention`, `norm`, `mlp` and `linear` put other layers into the blocks, see
    `models.vit.Layers`.

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
        position: Literal["learned", "rope", "none"] = "learned",
        *,
        attention: Make = SoftmaxAttention,
        norm: Make = nn.LayerNorm,
        mlp: Make = feed_forward,
        linear: Make = nn.Linear,
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
        if position not in ("learned", "rope", "none"):
            raise ValueError(f"position must be 'learned', 'rope' or 'none', got {position!r}.")
        if position == "rope" and "rope" not in inspect.signature(attention).parameters:
            raise ValueError("position='rope' needs an attention that takes rope.")
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, dim)
        length = self.input_shape[0]
        self.position = nn.Parameter(0.02 * torch.randn(length, dim)) if position == "learned" else None
        layers = Layers(attention, norm, mlp, linear=linear)
        place: dict[str, Any] = {"max_len": length, "n_ref": length}
        if position == "rope":
            place["rope"] = True
        blocks = (
            Block(dim, heads, dropout, causal=True, layers=layers, layer=i, **place) for i in range(depth)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(dim)
        self.out_features = dim
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward_features(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        x = self._check(x)
        embedded = self.embedding(x)
        if self.position is not None:
            embedded = embedded + self.position[: x.shape[1]]
        return self.norm(self.blocks(embedded))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map[:, -1]

    def forward(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
        return self.pool(self.forward_features(x))

    def _check(self, x: Tensor) -> Int[Tensor, "batch tokens"]:
        most = self.input_shape[0] if self.position is not None else math.inf
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
