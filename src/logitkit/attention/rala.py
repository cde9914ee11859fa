"""Rank-augmented linear attention: linear attention whose buffer and output are of high rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, key_mask, repeat_heads, with_dropout
from logitkit.attention.linear import LinearAttention
from logitkit.ops.grid import depthwise, grid_of, rotary_2d
from logitkit.registry import Choice, part

Turn = Callable[[Tensor], Tensor]


def rank_augmented_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any 1 keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    augment: bool = True,
    turn: Turn | None = None,
    counted: Bool[Tensor, "*any queries 1"] | None = None,
) -> Float[Tensor, "*batch heads queries out"]:
    """Linear attention (elu + 1) with the keys weighted by what the mean query makes of them; see
    `RankAugmentedAttention`.

    attn_mask hides keys from all queries alike. scale is that of the keys' weights, 1 / sqrt(dim), which
    augment=False leaves out. turn: positions, applied to features of queries and keys but for the
    denominators. counted: the queries that their mean is of, all by default. A key's weight depends on all
    queries: is_causal must be False.
    """
    if is_causal:
        raise ValueError("rank-augmented attention has no causal form, got is_causal=True.")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads = query.shape[-3] if enable_gqa else key.shape[-3]
    q, k = F.elu(query) + 1, F.elu(repeat_heads(key, heads)) + 1
    seen = key_mask(attn_mask, "rank-augmented attention")
    if augment:
        k = k * context_weights(_mean(q, counted), k, scale, seen)
    elif seen is not None:
        k = k * seen
    n = k.shape[-2] if seen is None else seen.sum(-2, keepdim=True).clamp(min=1)
    turned_q, turned_k = (q, k) if turn is None else (turn(q), turn(k))

    def mix(value: Tensor) -> Tensor:
        mixed = ops.linear_attention(
            turned_q, turned_k, repeat_heads(value, heads), feature=None, normalize=False
        )
        assert isinstance(mixed, Tensor)
        return mixed / (q @ k.sum(-2)[..., None] + 1e-6 * n)

    return with_dropout(mix, key, value, dropout_p)


def context_weights(
    mean: Float[Tensor, "*batch 1 dim"],
    key: Float[Tensor, "*batch keys dim"],
    scale: float,
    seen: Bool[Tensor, "*any keys 1"] | None = None,
) -> Float[Tensor, "*batch keys 1"]:
    """a_j = n softmax_j(scale mean . k_j) over the n keys that are seen, so that they are 1 in the mean."""
    scores = scale * key @ mean.mT
    if seen is None:
        return scores.shape[-2] * scores.softmax(-2)
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-2) * seen
    return seen.sum(-2, keepdim=True) * weights


@part(
    "rala",
    "attention",
    title="Breaking the Low-Rank Dilemma of Linear Attention",
    paper="arXiv:2411.07635",
    number=155,
    tasks=("classification",),
    search_space={"lepe": Choice(3, 5)},
)
class RankAugmentedAttention(MultiheadAttention):
    """Rank-augmented linear attention (RALA): time that grows with the tokens, and a higher rank than that of
    plain linear attention; for images.

    Equation: y = W ((A + D) * o), A_i = phi(q_i) S / (phi(q_i) . mean_j a_j phi(k_j) + 1e-6), S = mean_j a_j
    phi(k_j) v_j^T, phi = elu + 1. The keys' weights are a_j = n softmax_j(mean_i phi(q_i) . phi(k_j) /
    sqrt(d)), D = LePE(v) is a depthwise convolution of the values, and o = W_o x. With rope the features of
    queries and keys are turned by row (first half) and column (second half) in the numerator only.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same.

    Defaults: the authors' code: rope on, a 5x5 convolution, o without an activation. The frequencies go from
    1 to 1/10000, both included. Without `grid` (height, width) the tokens are a square. augment_kv=False
    leaves out a, augment_out=False o.

    Raises: ValueError for sizes that do not fit, heads with another number of features than a multiple of 4
    under rope, an even lepe, tokens that do not fill the grid, is_causal, other dtypes than floats, an empty
    batch or NaN.

    Source: Fan, Huang, He, CVPR 2025, arXiv:2411.07635, section 3; the authors' RALA.py.

    Not for: sequences read from left to right: a key's weight depends on all queries.
    """

    takes = frozenset({"padding"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        grid: tuple[int, int] | None = None,
        rope: bool = True,
        augment_kv: bool = True,
        augment_out: bool = True,
        lepe: int = 5,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if rope and self.head_dim % 4:
            raise ValueError(f"rope on a grid needs a multiple of 4 features per head, got {self.head_dim}.")
        if lepe < 1 or lepe % 2 == 0:
            raise ValueError(f"lepe must be an odd size of at least 1, got {lepe}.")
        self.grid, self.turns, self.augment_kv = grid, rope, augment_kv
        self.gate = nn.Linear(embed_dim, embed_dim, bias=bias) if augment_out else None
        self.lepe = nn.Conv2d(embed_dim, embed_dim, lepe, padding=lepe // 2, groups=embed_dim)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return rank_augmented_attention(
            query, key, value, mask, augment=self.augment_kv, turn=self.turn if self.turns else None,
            counted=key_mask(mask, "rank-augmented attention"),
        )  # fmt: skip

    def turn(self, x: Float[Tensor, "batch heads tokens dim"]) -> Float[Tensor, "batch heads tokens dim"]:
        """Features turned by the row and column of their tokens."""
        # rotary's frequencies base^(-c / n) are 10000^(-c / (n - 1)) with this base, n to each axis.
        n = self.head_dim // 4
        return rotary_2d(x, grid_of(x.shape[-2], self.grid), 10_000.0 ** (n / max(n - 1, 1)))

    def finish(self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        seen = key_mask(mask, "rank-augmented attention")
        value = (value if seen is None else value * seen).transpose(1, 2).flatten(2)
        grid = grid_of(value.shape[1], self.grid)
        near = depthwise(value.unflatten(1, grid), self.lepe.weight[:, 0], self.lepe.bias).flatten(1, 2)
        out = mixed.transpose(1, 2).flatten(2) + near
        return self.out_proj(out if self.gate is None else out * self.gate(query))


@torch.no_grad()
def rank_report(
    layer: RankAugmentedAttention | LinearAttention, x: Float[Tensor, "batch tokens dim"]
) -> dict[str, float]:
    """Ranks of the buffer sum_j phi(k_j) v_j^T, in the mean over batch and heads, and of the layer's output:
    numerical, and as exp of the entropy of the singular values' shares."""
    q, k, v = layer.project(x, x, x)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    if isinstance(layer, RankAugmentedAttention):
        if layer.augment_kv:
            k = k * context_weights(_mean(q, None), k, layer.head_dim**-0.5)
        k = layer.turn(k) if layer.turns else k
    found = {}
    for what, matrix in (("buffer", k.mT @ v), ("output", layer(x)[0])):
        shares = torch.linalg.svdvals(matrix.double())
        shares = shares / shares.sum(-1, keepdim=True)
        found[f"{what} rank"] = torch.linalg.matrix_rank(matrix).double().mean().item()
        found[f"{what} entropy rank"] = torch.special.entr(shares).sum(-1).exp().mean().item()
    return found


def _mean(x: Tensor, counted: Tensor | None) -> Float[Tensor, "*batch 1 dim"]:
    if counted is None:
        return x.mean(-2, keepdim=True)
    return (x * counted).sum(-2, keepdim=True) / counted.sum(-2, keepdim=True).clamp(min=1)
