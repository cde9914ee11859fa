"""Selective self-attention: a temperature for each query, and a gain for each value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention.base import MultiheadAttention
from logitkit.attention.softmax import softmax_attention
from logitkit.registry import Choice, part

Position = Literal["sigmoid", "expexp"] | None


class SelectiveTemperature(nn.Module):
    """The inverse temperature of tokens: t = 1 + g(a) log n + tanh(w . gelu(p)), p the projection of a token
    that the layer makes anyway, n its position counted from 1.

    position: g is the logistic function, or exp(-exp(a)) as in the authors' code ("expexp"), or 0 (None).
    token: whether there is a term of the token itself; it starts at 0.
    """

    def __init__(self, dim: int, position: Position = "sigmoid", token: bool = True) -> None:
        super().__init__()
        if position not in ("sigmoid", "expexp", None):
            raise ValueError(f"position must be 'sigmoid', 'expexp' or None, got {position!r}.")
        self.kind = position
        start = {"sigmoid": -4.0, "expexp": 2.0}
        self.a = None if position is None else nn.Parameter(torch.tensor(start[position]))
        self.w = nn.Parameter(torch.zeros(dim)) if token else None

    def forward(
        self, projected: Float[Tensor, "batch tokens dim"], start: int = 0
    ) -> Float[Tensor, "batch tokens"]:
        """t of each token; the first has the position `start`, counted from 0."""
        wide = projected.float() if projected.dtype in (torch.float16, torch.bfloat16) else projected
        t = torch.ones_like(wide[..., 0])
        if self.a is not None:
            n = torch.arange(1 + start, 1 + start + wide.shape[1], device=wide.device, dtype=wide.dtype)
            a = self.a.to(wide.dtype)
            t = t + (a.sigmoid() if self.kind == "sigmoid" else (-a.exp()).exp()) * n.log()
        if self.w is not None:
            t = t + (F.gelu(wide) @ self.w.to(wide.dtype)).tanh()
        return t.to(projected.dtype)


@part(
    "selective",
    "attention",
    number=24,
    title="Selective Attention: Enhancing Transformer through Principled Context Control",
    paper="arXiv:2411.12892",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"on": Choice(("q",), ("q", "v"), ("q", "k", "v")), "token": Choice(False, True)},
)
class SelectiveAttention(MultiheadAttention):
    """Selective self-attention: softmax attention whose queries choose how sharply they look, for few new
    parameters.

    Equation: out_i = sum_j a_ij t_v(x_j, j) v_j, a_i = softmax_j(t_q(x_i, i) q_i . k_j / sqrt(d)); t(x, n) =
    1 + sigmoid(a) log n + tanh(w . gelu(W x)), n = 1, 2, ... the position and W the layer's own projection of
    queries, or values. The heads share t. Keys may have one too.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys), before t_v, or None.

    Defaults: queries and values, both terms, w = 0 and a = -4, so that training starts at softmax attention.
    position="expexp" is the authors' code, 1 + exp(-exp(a)) log n with a = 2, whose released part has no term
    of the token.

    Raises: ValueError for sizes that do not fit, an unknown `position` or place in `on`, other dtypes than
    floats, an empty batch or NaN.

    Source: Zhang et al., NeurIPS 2024, arXiv:2411.12892, the SSA layer, and the authors' `gpt_2_PTS.py`.

    Not for: tokens without an order, unless position=None.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        rope: bool = False,
        qk_norm: bool = False,
        on: Sequence[str] = ("q", "v"),
        position: Position = "sigmoid",
        token: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias, rope=rope, qk_norm=qk_norm)
        if not on or set(on) - {"q", "k", "v"}:
            raise ValueError(f"on must name some of 'q', 'k' and 'v', got {on!r}, {len(on)} names.")
        self.temperature = nn.ModuleDict({x: SelectiveTemperature(embed_dim, position, token) for x in on})

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's, each token times its t."""
        heads = dict(zip("qkv", self.split(query, key, value), strict=True))
        t = {x: f(heads[x].transpose(1, 2).flatten(2), start) for x, f in self.temperature.items()}
        heads["q"], heads["k"] = self.place(heads["q"], heads["k"], start)
        q, k, v = (x if name not in t else x * t[name][:, None, :, None] for name, x in heads.items())
        return q, k, v

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return softmax_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0
        )
