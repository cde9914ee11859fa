"""Attention guided by its entropy, for models that run on encrypted inputs with few nonlinearities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, identity
from logitkit.attention.softmax import softmax_attention
from logitkit.registry import Real, part

Highest = Literal["causal", "logT"]


def attention_entropy(weights: Float[Tensor, "*batch rows keys"]) -> Float[Tensor, "*batch rows"]:
    """-sum_j a_ij log(a_ij + 1e-9) of each row, in nats."""
    wide = weights.float() if weights.dtype in (torch.float16, torch.bfloat16) else weights
    return -(wide * (wide + 1e-9).log()).sum(-1)


def highest_entropy(weights: Float[Tensor, "*batch rows keys"], hmax: Highest) -> Float[Tensor, " rows"]:
    """What a row's entropy can reach: log i for the i-th row of causal attention, or log T for all."""
    rows, keys = weights.shape[-2:]
    if hmax not in ("causal", "logT"):
        raise ValueError(f"hmax must be 'causal' or 'logT', got {hmax!r}.")
    if hmax == "logT":
        return torch.full((rows,), math.log(keys), device=weights.device)
    return torch.arange(1, rows + 1, device=weights.device).clamp(max=keys).float().log()


class EntropyRegularizer(nn.Module):
    """A penalty on attention whose entropy strays from what each head may choose.

    Equation: lam * mean over layers, mean over heads, sum over sequences and rows of d^2 where |d| > g Hmax,
    0 elsewhere; d = H_i - th_h Hmax. The penalty jumps where |d| passes the margin, as published. As it is a
    sum, lam depends on the batch and its length.

    hmax: the published log T lets the first rows of causal attention never reach their target; "causal" is
        log i for row i. th_h, learned, starts at `threshold`.

    Raises: ValueError for weights that are not (batch, heads, rows, keys), or of other layers or heads.

    Source: Jha, Reagen, arXiv:2501.03489; the authors' `entropy_regularization.py`.
    """

    def __init__(
        self,
        heads: int,
        layers: int,
        lam: float = 1e-5,
        margin: float = 0.2,
        hmax: Highest = "causal",
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if heads < 1 or layers < 1:
            raise ValueError(f"heads and layers must be at least 1, got {heads} and {layers}.")
        if lam < 0 or margin < 0:
            raise ValueError(f"lam and margin must not be negative, got {lam} and {margin}.")
        self.heads, self.layers, self.lam, self.margin, self.hmax = heads, layers, lam, margin, hmax
        self.threshold = nn.Parameter(torch.full((heads,), threshold))

    def forward(self, weights: Sequence[Float[Tensor, "batch heads rows keys"]]) -> Float[Tensor, ""]:
        """The penalty for the attention weights of every layer."""
        if len(weights) != self.layers:
            raise ValueError(f"expected weights of {self.layers} layers, got {len(weights)}.")
        total = self.threshold.new_zeros(())
        for a in weights:
            if a.ndim != 4 or a.shape[1] != self.heads:
                raise ValueError(f"weights must be (batch, {self.heads}, rows, keys), got {tuple(a.shape)}.")
            most = highest_entropy(a, self.hmax)
            off = attention_entropy(a) - self.threshold[:, None] * most
            strays = (off.abs() > self.margin * most) & (most > 0)
            total = total + torch.where(strays, off, 0).square().sum()
        return self.lam * total / (self.heads * self.layers)


class EntropyReport(NamedTuple):
    """Per layer and head: mean entropy over its highest, the share of rows below `low` of it (collapse) and
    above `high` (overload), and the mean excess over `high`. Rows that see one key are left out."""

    ratio: Float[Tensor, "layers heads"]
    collapse: Float[Tensor, "layers heads"]
    overload: Float[Tensor, "layers heads"]
    excess: Float[Tensor, "layers heads"]


@torch.no_grad()
def entropy_report(
    weights: Sequence[Float[Tensor, "batch heads rows keys"]],
    hmax: Highest = "causal",
    low: float = 0.05,
    high: float = 0.75,
) -> EntropyReport:
    """How the heads of every layer look: at one key, at all alike, or between."""
    found = []
    for a in weights:
        most = highest_entropy(a, hmax)
        ratio = (attention_entropy(a) / most)[..., most > 0]
        each = ratio, (ratio < low).double(), (ratio > high).double(), (ratio - high).relu()
        found.append(torch.stack([x.double().mean((0, 2)) for x in each]))
    return EntropyReport(*torch.stack(found, 1))


@contextmanager
def record_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, every call of the model fills the list with the weights (batch, heads, rows, keys) of its
    attention layers, in order, part of the graph.

    Raises ValueError for a model without attention, or with attention that has no weights to give.
    """
    found: list[Tensor] = []

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def keep(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        found.append(output[1])

    layers = [m for m in model.modules() if isinstance(m, MultiheadAttention)]
    without = sorted({type(m).__name__ for m in layers if "weights" not in m.takes})
    if not layers or without:
        raise ValueError(
            f"expected attention with weights, got {len(layers)} layers of it, {without} without."
        )
    handles: list[Any] = [m.register_forward_pre_hook(ask, with_kwargs=True) for m in layers]
    handles += [m.register_forward_hook(keep) for m in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@part(
    "entropy_guided",
    "attention",
    number=50,
    title="Entropy-Guided Attention for Private LLMs",
    paper="arXiv:2501.03489",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"lam": Real(1e-6, 1e-4, log=True)},
)
class TemperedAttention(MultiheadAttention):
    """Tempered attention: softmax with a learned temperature for each head and position, the one nonlinearity
    that is left in a model for encrypted inputs.

    Equation: a_i = softmax_j(q_i . k_j / (t_hi sqrt(d))). With lam above 0, training from a recipe adds lam
    times `penalty()` to the loss, the `EntropyRegularizer` of this layer with thresholds of its own, and
    heads stay between looking at one key and at all alike. The paper's lambda is of the mean over layers: lam
    times their number. In a training loop of one's own, `record_weights` collects what an
    `EntropyRegularizer` of all layers takes. The paper's model has
    no LayerNorm, and feed-forward networks without activation but with a learned scale: recipes have
    layers=nonlinearity_light.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None.

    Defaults: t = 1 at the start; 1 / t is what is learned. max_len=None has one t for each head. lam = 0: no
    penalty; margin = 0.2 as the paper's, and what entropies can reach as the mask says, causal or not.

    Raises: ValueError for sizes that do not fit, more queries than max_len, a negative lam or margin, other
    dtypes than floats, an empty batch or NaN.

    Source: Jha, Reagen, 2025, arXiv:2501.03489, its parameterised attention.

    Not for: inputs longer than max_len.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        max_len: int | None = None,
        lam: float = 0.0,
        margin: float = 0.2,
        num_kv_heads: int | None = None,
        rope: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        self.max_len = max_len
        self.inverse_temperature = nn.Parameter(torch.ones(num_heads, max_len or 1))
        if lam < 0 or margin < 0:
            raise ValueError(f"lam and margin must not be negative, got {lam} and {margin}.")
        self.lam = lam
        self.regularizer = EntropyRegularizer(num_heads, 1, 1.0, margin) if lam else None
        self._penalty: Tensor | None = None

    def penalty(self) -> Float[Tensor, ""]:
        """The `EntropyRegularizer` of the weights of the last call in training, once; 0 without one."""
        found, self._penalty = self._penalty, None
        return self.inverse_temperature.new_zeros(()) if found is None else found

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's, queries divided by their temperature."""
        q, k, v = super().project(query, key, value, start)
        inverse: Tensor = self.inverse_temperature
        if self.max_len is not None:
            if start + q.shape[-2] > self.max_len:
                raise ValueError(f"max_len is {self.max_len}, got {start + q.shape[-2]} tokens.")
            inverse = inverse[:, start : start + q.shape[-2]]
        return q * inverse[..., None].to(q.dtype), k, v

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return softmax_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0, enable_gqa=True
        )

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int | None) -> Tensor:
        if self.training and self.regularizer is not None:
            self.regularizer.hmax = "logT" if causal is None else "causal"
            self._penalty = self.regularizer([self.attend(q, k, identity(k), mask, causal)])
        return super()._mix(q, k, v, mask, causal)
