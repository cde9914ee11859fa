"""A gated linear recurrence in the place of attention: the quasi-LSTM, and its reversed forget gate."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention.base import MultiheadAttention
from logitkit.attention.dsf import reversed_gate
from logitkit.registry import Choice, part


def scan(
    decay: Float[Tensor, "batch tokens channels"],
    x: Float[Tensor, "batch tokens channels"],
    first: Float[Tensor, "batch channels"] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """h_i = decay_i h_{i-1} + x_i from h_0 = first, or 0; in log2(tokens) passes."""
    if first is not None:
        x = torch.cat([x[:, :1] + decay[:, :1] * first[:, None], x[:, 1:]], 1)
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat([x[:, :reach], x[:, reach:] + decay[:, reach:] * x[:, :-reach]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return x


@part(
    "qlstm",
    "attention",
    number=27,
    companion_of="dsf",
    title="Quasi-LSTM, with the forget gate of state-space models",
    paper="arXiv:2405.15731",
    replaces="softmax",
    tasks=("sequence",),
    search_space={"reversed": Choice(False, True), "expansion": Choice(1, 2)},
)
class QLSTM(MultiheadAttention):
    """Quasi-LSTM: a recurrence whose gates see the token alone, in the place of causal attention.

    Equation: (g, c) = W x; c <- a causal depthwise convolution of c over `kernel_size` tokens; (f, i, o) =
    V c + b; h_t = r(f) h_{t-1} + sigmoid(i) c, r(f) = sigmoid(f), or reversed, sigmoid(-f)^relu(a) =
    exp(-relu(a) softplus(f)), which is the transition of S6; out = U (gelu(g) sigmoid(o) h).

    Shapes: x (batch, tokens, embed_dim) -> same, and None; the state has expansion * embed_dim numbers.
    num_heads is there for the slot and has no meaning.

    Defaults: the authors': reversed, a = 1 at the start, twice the width, a convolution over 4 tokens.

    Raises: ValueError for sizes that do not fit, dropout, another order than causal, other dtypes than
    floats, an empty batch or NaN.

    Source: Sieber et al., NeurIPS 2024, arXiv:2405.15731, its qLSTM; the authors' `lstm.py`.

    Not for: tokens without an order; recalling more than its state holds.
    """

    takes = frozenset({"causal", "step"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = False,
        *,
        reversed: bool = True,
        expansion: int = 2,
        kernel_size: int = 4,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if dropout:
            raise ValueError(f"a recurrence has no weights to drop, got dropout={dropout}.")
        if expansion < 1 or kernel_size < 2:
            raise ValueError(
                f"expansion must be at least 1 and kernel_size 2, got {expansion} and {kernel_size}."
            )
        hidden = expansion * embed_dim
        self.in_proj = nn.Linear(embed_dim, 2 * hidden, bias=bias)
        self.conv = nn.Conv1d(hidden, hidden, kernel_size, groups=hidden)
        self.gates = nn.Linear(hidden, 3 * hidden)
        self.out_proj = nn.Linear(hidden, embed_dim, bias=bias)
        self.a = nn.Parameter(torch.tensor(1.0)) if reversed else None
        for layer in (self.in_proj, self.gates, self.out_proj):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(
        self,
        query: Float[Tensor, "batch tokens dim"],
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "batch tokens dim"], None]:
        """The output, and None; causal whether asked to be or not."""
        key = query if key is None else key
        value = key if value is None else value
        self._check(query, key, value, need_weights, attn_mask, key_padding_mask, is_causal)
        return self._run(query, None)[0], None

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the state is h and what the convolution still sees."""
        self._check_step(x)
        return self._run(x, state)

    def _run(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gate, c = self.in_proj(x).chunk(2, -1)
        back = self.conv.kernel_size[0] - 1
        before = c.new_zeros(len(c), back, c.shape[-1]) if state is None else state[1]
        c = torch.cat([before, c], 1)
        tail = c[:, -back:]
        c = self.conv(c.mT).mT
        forget, into, out = self.gates(c).chunk(3, -1)
        decay = forget.sigmoid() if self.a is None else reversed_gate(forget, self.a)
        # The recurrence sums many terms: in float32 at least.
        wide = torch.float64 if c.dtype == torch.float64 else torch.float32
        h = scan(decay.to(wide), (into.sigmoid() * c).to(wide), None if state is None else state[0])
        return self.out_proj(F.gelu(gate) * out.sigmoid() * h.to(c.dtype)), (h[:, -1], tail)
