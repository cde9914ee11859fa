"""InLine attention: linear attention whose weights are made to sum to 1 by subtraction, with a local term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, key_mask, repeat_heads, with_dropout
from logitkit.ops.grid import depthwise, grid_of
from logitkit.registry import Choice, part

FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "exp": lambda x: (0.2 * x).exp(),
}
SIZE = 3  # of the kernels of the local term


def inline_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any 1 keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    phi: str = "identity",
) -> Float[Tensor, "*batch heads queries out"]:
    """mean(V) + scale phi(Q) cov(phi(K), V), without the local term; see `InlineAttention`.

    attn_mask hides keys from all queries alike. No causal form is published: is_causal must be False.
    """
    if is_causal:
        raise ValueError("InLine attention has no causal form, got is_causal=True.")
    if phi not in FEATURES:
        raise ValueError(f"phi must be one of {sorted(FEATURES)}, got {phi!r}.")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads = query.shape[-3] if enable_gqa else key.shape[-3]
    q, k = FEATURES[phi](query), FEATURES[phi](repeat_heads(key, heads))
    seen = key_mask(attn_mask, "InLine attention")
    seen = torch.ones_like(k[..., :1], dtype=torch.bool) if seen is None else seen.expand_as(k[..., :1])
    n = seen.sum(-2, keepdim=True).clamp(min=1)
    k = (k - (k * seen).sum(-2, keepdim=True) / n) * seen

    def mix(value: Tensor) -> Tensor:
        value = repeat_heads(value, heads)
        mean = (value * seen).sum(-2, keepdim=True) / n
        mixed = ops.linear_attention(q * scale / n, k, value, feature=None, normalize=False)
        assert isinstance(mixed, Tensor)
        return mean + mixed

    return with_dropout(mix, key, value, dropout_p)


@part(
    "inline",
    "attention",
    title="Bridging the Divide: Reconsidering Softmax and Linear Attention",
    paper="arXiv:2412.06590",
    number=154,
    aliases=("inline_attention",),
    tasks=("classification",),
    search_space={"phi": Choice(*FEATURES)},
)
class InlineAttention(MultiheadAttention):
    """InLine attention: in time that grows with the tokens, weights that tell phi(q) from 3 phi(q), and each
    token's neighbours; for images.

    Equation: out_i = sum_j w_ij v_j + sum_{j next to i} r_{j-i} v_j, w_ij = s/n phi(q_i) . phi(k_j) + (1 - s
    phi(q_i) . kbar) / n, kbar the mean of phi(k_j), s = 1/sqrt(d). Rows of w sum to 1; weights may be
    negative. As it is computed, sum_j w_ij v_j = vbar + s phi(q_i) cov(phi(k), v). The 3x3 kernels r, one per
    channel, are made of the mean token: r = W_2 gelu(W_1 mean_i x_i), with W_1 and W_2 in as many groups as
    there are heads.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same.

    Defaults: the authors' code: phi is the identity, with the local term. Without `grid` (height, width) the
    tokens are a square.

    Raises: ValueError for sizes that do not fit, tokens that do not fill the grid, another phi, is_causal,
    other dtypes than floats, an empty batch or NaN.

    Source: Han et al., NeurIPS 2024, arXiv:2412.06590, equation 5; the scale and the local term
    as in the authors' code.

    Not for: sequences read from left to right, for which there is no causal form.
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
        phi: str = "identity",
        local: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if phi not in FEATURES:
            raise ValueError(f"phi must be one of {sorted(FEATURES)}, got {phi!r}.")
        self.grid, self.phi = grid, phi
        self.kernels = (
            nn.Sequential(
                nn.Conv1d(embed_dim, embed_dim, 1, groups=num_heads),
                nn.GELU(),
                nn.Conv1d(embed_dim, SIZE * SIZE * embed_dim, 1, groups=num_heads),
            )
            if local
            else None
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return inline_attention(query, key, value, mask, phi=self.phi)

    def finish(self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if self.kernels is None:
            return self.merge(mixed)
        batch, tokens, dim = query.shape
        value = value.transpose(1, 2).flatten(2)
        seen = key_mask(mask, "InLine attention")
        if seen is None:
            mean = query.mean(1)
        else:
            seen = seen.flatten(0, 1)
            mean = (query * seen).sum(1) / seen.sum(1).clamp(min=1)
            value = value * seen
        kernels = self.kernels(mean[:, :, None]).view(batch * dim, SIZE, SIZE)
        # Every image has kernels of its own, so that the images stand side by side as channels.
        side = value.transpose(0, 1).reshape(1, *grid_of(tokens, self.grid), batch * dim)
        near = depthwise(side, kernels).view(tokens, batch, dim).transpose(0, 1)
        return self.merge(mixed + near.unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
