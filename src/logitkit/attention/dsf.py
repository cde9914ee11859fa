"""Normalised attention, and the one form that attention, state-space models and gated recurrences share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, key_mask, repeat_heads
from logitkit.registry import part


@dataclass(frozen=True)
class DSF:
    """A dynamical system: h_i = L_i h_{i-1} + B_i u_i, y_i = C_i h_i + D u_i, h_0 = 0 and L_i diagonal.

    L (tokens, state), B (tokens, state, inputs), C (tokens, outputs, state), D (outputs, inputs) or None. For
    study: attention over values of width w has keys' width times w numbers of state.
    """

    L: Float[Tensor, "tokens state"]
    B: Float[Tensor, "tokens state inputs"]
    C: Float[Tensor, "tokens outputs state"]
    D: Float[Tensor, "outputs inputs"] | None = None

    def __post_init__(self) -> None:
        (tokens, state), inputs, outputs = self.L.shape, self.B.shape[-1], self.C.shape[1]
        shapes = (tokens, state, inputs), (tokens, outputs, state)
        if (self.B.shape, self.C.shape) != shapes or (
            self.D is not None and self.D.shape != (outputs, inputs)
        ):
            raise ValueError(
                f"L, B, C and D do not fit: got {tuple(self.L.shape)}, {tuple(self.B.shape)}, "
                f"{tuple(self.C.shape)} and {None if self.D is None else tuple(self.D.shape)}."
            )

    def scan(self, u: Float[Tensor, "tokens inputs"]) -> Float[Tensor, "tokens outputs"]:
        """y, token by token."""
        h, found = torch.zeros_like(self.L[0]), []
        for decay, into, out, x in zip(self.L, self.B, self.C, u, strict=True):
            h = decay * h + into @ x
            found.append(out @ h)
        y = torch.stack(found)
        return y if self.D is None else y + u @ self.D.T

    def kernel(self) -> Float[Tensor, "tokens tokens outputs inputs"]:
        """The map from u to y as blocks, y_i = sum_j kernel_ij u_j: C_i L_i ... L_{j+1} B_j for j <= i."""
        tokens = len(self.L)
        blocks = self.C.new_zeros(tokens, tokens, self.C.shape[1], self.B.shape[2])
        for j in range(tokens):
            decay = torch.ones_like(self.L[0])
            for i in range(j, tokens):
                decay = decay if i == j else decay * self.L[i]
                blocks[i, j] = (self.C[i] * decay) @ self.B[j]
                if i == j and self.D is not None:
                    blocks[i, j] += self.D
        return blocks

    @classmethod
    def from_linear_attention(
        cls, query: Float[Tensor, "tokens dim"], key: Float[Tensor, "tokens dim"], width: int
    ) -> DSF:
        """Causal linear attention (elu + 1) over values of that width: L = 1, C_i = phi(q_i) / eta_i, eta_i =
        phi(q_i) . sum_{j <= i} phi(k_j)."""
        q, k = F.elu(query) + 1, F.elu(key) + 1
        eta = (q * k.cumsum(0)).sum(-1, keepdim=True)
        return cls._over_values(torch.ones_like(eta), k, q / eta, width)

    @classmethod
    def from_norm_attention(
        cls,
        query: Float[Tensor, "tokens dim"],
        key: Float[Tensor, "tokens dim"],
        eta: Float[Tensor, " tokens"],
        width: int,
        decay: bool = False,
    ) -> DSF:
        """Causal normalised attention: L = 1, B_i u = k_i u^T, C_i = q_i / eta_i. With `decay` the same map
        as L_i = eta_{i-1} / eta_i, B_i u = k_i u^T / eta_i, C_i = q_i."""
        eta = eta[:, None]
        if not decay:
            return cls._over_values(torch.ones_like(eta), key, query / eta, width)
        # h_0 = 0, so that the first L does not matter.
        ratio = torch.cat([torch.ones_like(eta[:1]), eta[:-1] / eta[1:]])
        return cls._over_values(ratio, key / eta, query, width)

    @classmethod
    def from_s6(
        cls,
        delta: Float[Tensor, "tokens channels"],
        A: Float[Tensor, "channels state"],
        into: Float[Tensor, "tokens state"],
        out: Float[Tensor, "tokens state"],
    ) -> DSF:
        """A selective state-space model, a state per channel: L_i = exp(-delta_i A), B_i = delta_i into_i,
        C_i = out_i."""
        eye = torch.eye(delta.shape[1], dtype=delta.dtype, device=delta.device)
        B = torch.einsum("tc,tn,cd->tcnd", delta, into, eye)
        C = torch.einsum("tn,cd->tdcn", out, eye)
        return cls((-delta[..., None] * A).exp().flatten(1), B.flatten(1, 2), C.flatten(2))

    @classmethod
    def from_qlstm(
        cls,
        forget: Float[Tensor, "tokens channels"],
        into: Float[Tensor, "tokens channels"],
        out: Float[Tensor, "tokens channels"],
        a: float | None = None,
    ) -> DSF:
        """A linear recurrence with an LSTM's gates, given before their sigmoid. With `a` the transition is
        reversed, as S6 has it: L_i = sigmoid(-f_i)^relu(a)."""
        L = forget.sigmoid() if a is None else reversed_gate(forget, forget.new_tensor(a))
        return cls(L, into.sigmoid().diag_embed(), out.sigmoid().diag_embed())

    @classmethod
    def _over_values(cls, decay: Tensor, key: Tensor, query: Tensor, width: int) -> DSF:
        """The state of attention: keys' width times that of values."""
        eye = torch.eye(width, dtype=key.dtype, device=key.device)
        B = torch.einsum("tn,cd->tncd", key, eye).flatten(1, 2)
        C = torch.einsum("tn,cd->tdnc", query, eye).flatten(2)
        return cls(decay.expand(-1, B.shape[1]), B, C)


def reversed_gate(forget: Tensor, a: Tensor) -> Tensor:
    """sigmoid(-f)^relu(a) = exp(-relu(a) softplus(f))."""
    return (-a.relu() * F.softplus(forget)).exp()


def taylor_attention(
    query: Float[Tensor, "*batch queries dim"],
    key: Float[Tensor, "*batch keys dim"],
    value: Float[Tensor, "*batch keys out"],
    order: int,
    is_causal: bool = False,
) -> Float[Tensor, "*batch queries out"]:
    """Softmax attention with exp(q . k) cut after the power `order`: linear attention with the features of
    that Taylor series. Even orders have positive weights."""
    scores = query @ key.mT
    weights = sum((scores**r / math.factorial(r) for r in range(order + 1)), torch.zeros_like(scores))
    weights = weights.tril() if is_causal else weights
    return weights @ value / weights.sum(-1, keepdim=True)


def norm_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    log_eta: Float[Tensor, "*batch heads queries"],
    attn_mask: Bool[Tensor, "*any 1 keys"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "*batch heads queries out"]:
    """exp(-log_eta_i) sum_j (q_i . k_j) v_j; see `NormAttention`. attn_mask hides keys from all queries."""
    seen = key_mask(attn_mask, "normalised attention")
    key, value = repeat_heads(key, query.shape[-3]), repeat_heads(value, query.shape[-3])
    key = key if seen is None else key * seen
    query = query * (-log_eta).exp()[..., None]
    mixed = ops.linear_attention(query, key, value, feature=None, is_causal=is_causal, normalize=False)
    assert isinstance(mixed, Tensor)
    return mixed


@part(
    "dsf",
    "attention",
    number=27,
    title="Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent"
    " Neural Networks",
    paper="arXiv:2405.15731",
    replaces="softmax",
    aliases=("norm_attention",),
    tasks=("sequence", "classification"),
)
class NormAttention(MultiheadAttention):
    """Normalised attention: linear attention whose sum is divided by a number that the token chooses, not by
    the sum of the weights; time linear in the tokens, a state of fixed size.

    Equation: out_i = sum_j (q_i . k_j) v_j / eta_i, eta_i = exp(w . x_i + b), one w and b per head; no
    features and no 1 / sqrt(d), weights of either sign. As a recurrence of `DSF`: L_i = eta_{i-1} / eta_i,
    B_i u = k_i u^T / eta_i, C_i = q_i.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None. Weights do not sum to 1.

    Defaults: w and b start as a linear layer's. w . x + b is held within +-15.

    Raises: ValueError for sizes that do not fit, a mask that differs between queries, other dtypes than
    floats, an empty batch or NaN.

    Source: Sieber et al., NeurIPS 2024, arXiv:2405.15731, the DSF and its normalised attention; the authors'
    `attention.py`, which does not clamp. `qlstm` is its gated recurrence.

    Not for: probes that read weights as a distribution.
    """

    takes = MultiheadAttention.takes - {"mask"}
    CLAMP = 15.0

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        num_kv_heads: int | None = None,
        rope: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        self.log_eta = nn.Linear(embed_dim, num_heads)

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's, queries divided by their eta."""
        q, k, v = super().project(query, key, value, start)
        log_eta = self.log_eta(query).clamp(-self.CLAMP, self.CLAMP).transpose(1, 2)
        return q * (-log_eta).exp()[..., None], k, v

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        done = query.new_zeros(query.shape[:-1])  # project has divided
        return norm_attention(query, key, value, done, mask, is_causal=causal is not None)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the state is the sum over keys, and has the same size however many there were."""
        self._check_step(x)
        start, sums = (0, None) if state is None else state
        q, k, v = self.project(x, x, x, start)
        mixed, sums = ops.linear_attention(
            q, repeat_heads(k, self.num_heads), repeat_heads(v, self.num_heads), feature=None,
            is_causal=True, normalize=False, initial_state=sums, return_state=True,
        )  # fmt: skip
        return self.merge(mixed), (start + x.shape[1], sums)
