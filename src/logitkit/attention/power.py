"""Power attention: weights that are an even power of the scores, and models of sums and products only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, repeat_heads, visible_keys, weighted
from logitkit.ops import Polynomial, PolynomialInverse, PolynomialRsqrt
from logitkit.ops.attention import Power
from logitkit.registry import Choice, Real, part


@dataclass(frozen=True)
class MeanPower(Power):
    """s^power, divided by the row's mean plus eps and by the number of visible keys."""

    def stretch(self, visible: Tensor, head_dim: int) -> Tensor | None:
        return visible.clamp(min=1) ** (-1 / self.power)


def power_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any queries keys"] | Float[Tensor, "*any queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: int = 0,
    power: int = 4,
    eps: float = 1e-3,
    mean_form: bool = False,
) -> Float[Tensor, "*batch heads queries out"]:
    """S^power / (sum S^power + eps) V, S = scale Q K^T + mask; see `PowerAttention`."""
    weight = MeanPower(power, eps) if mean_form else Power(power, eps)
    return weighted(
        weight, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, causal_offset
    )


@part(
    "power",
    "attention",
    number=137,
    title="Power-Softmax: Towards Secure LLM Inference over Encrypted Data",
    paper="arXiv:2410.09457",
    replaces="softmax",
    tasks=("sequence", "classification"),
    search_space={"power": Choice(2, 4, 6), "eps": Real(1e-4, 1e-1, log=True)},
)
class PowerAttention(MultiheadAttention):
    """Power attention: trains like softmax, and `to_polynomial` makes a model with it one of sums and
    products, for inference on encrypted numbers.

    Equation: A_ij = s_ij^p / (sum_k s_ik^p + eps), s_ij = q_i . k_j / sqrt(d), p even: large on either side
    of 0. With mean_form the sum is a mean over the N_i keys that row i sees, A_ij = s_ij^p / N_i / (sum_k
    s_ik^p / N_i + eps), so that the range of what is divided by does not depend on the length. Both are
    computed relative to the row's largest |s|.

    Shapes: query (batch, queries, embed_dim), key and value (batch, keys, embed_dim) -> (batch, queries,
    embed_dim), and the weights (batch, queries, keys) or None. Rows sum to a little less than 1, and to 0
    where all scores are 0.

    Defaults: p = 4 and eps = 1e-3, which bounds the derivative.

    Raises: ValueError for sizes that do not fit, an odd power, a negative eps, other dtypes than floats, an
    empty batch or NaN.

    Source: Zimerman et al., arXiv:2410.09457, PowerSoftmax, its stable and its length-agnostic form.

    Not for: scores whose sign matters, as it does in a model trained with softmax.
    """

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
        power: int = 4,
        eps: float = 1e-3,
        mean_form: bool = False,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        Power(power, eps)  # says what is wrong with them
        self.power, self.eps, self.mean_form = power, eps, mean_form
        self.inverse: nn.Module | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        if self.inverse is not None:
            return self._by_products(self.inverse, query, key, value, mask, causal)
        return power_attention(
            query, key, value, mask, is_causal=causal is not None, causal_offset=causal or 0, enable_gqa=True,
            power=self.power, eps=self.eps, mean_form=self.mean_form,
        )  # fmt: skip

    def _by_products(
        self,
        inverse: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: int | None,
    ) -> Tensor:
        """The weights without a division: what is inverted is a mean over the visible keys plus eps."""
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"a polynomial model takes boolean masks, got {mask.dtype}.")
        key, value = (repeat_heads(x, self.num_heads) for x in (key, value))
        scores = self.head_dim**-0.5 * query @ key.transpose(-1, -2)
        seen = torch.ones_like(scores[0, 0], dtype=torch.bool)
        seen = seen if causal is None else seen.tril(causal)
        seen = seen if mask is None else seen & mask
        powered = _raise(scores, self.power) * seen
        share = query.new_tensor([0.0, *(1 / n for n in range(1, key.shape[-2] + 1))])
        share = share[visible_keys(mask, causal, query, key)][..., None]
        mean = powered.sum(-1, keepdim=True) * share
        unit = inverse(mean + (self.eps if self.mean_form else self.eps * share))
        return (powered * (share * unit)) @ value


class Piece(NamedTuple):
    """What stands in for one module of a polynomial model: its name in the model, what it replaces, the
    interval it holds on, and how many products follow one another from its input to its output."""

    name: str
    what: str
    low: float
    high: float
    depth: int


class PolynomialLayerNorm(nn.Module):
    """LayerNorm with `rsqrt` in the place of the inverse square root."""

    def __init__(self, norm: nn.LayerNorm, rsqrt: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.rsqrt = norm.weight, norm.bias, norm.eps, rsqrt

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        share = 1 / x.shape[-1]
        x = x - share * x.sum(-1, keepdim=True)
        x = x * self.rsqrt(share * (x * x).sum(-1, keepdim=True) + self.eps)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


ACTIVATIONS = (nn.GELU, nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU)


@torch.no_grad()
def to_polynomial(
    model: nn.Module, calibration: Iterable[Tensor], *, margin: float = 4.0, tolerance: float = 1e-3
) -> tuple[nn.Module, list[Piece]]:
    """A copy of `model` made of sums and products, and what was replaced in it.

    Divisions of `PowerAttention`, inverse square roots of `nn.LayerNorm` and activations (`ACTIVATIONS`)
    become polynomials on the intervals that `calibration`, batches of the model's input, leads to: divisors
    and variances from a `margin`-th of the smallest to `margin` times the largest, inputs of activations
    within sqrt(margin) times the half-width around the middle. The rest of the model, and what follows its
    scores, is left alone. On numbers outside an interval the copy raises ValueError; `range_penalties` trains
    it to have none.

    tolerance: the largest error of an activation; that of inverses and inverse square roots, which is
    relative, is a hundredth of it.
    """
    model = copy.deepcopy(model).eval()
    watches: list[tuple[str, Callable[[nn.Module], None], _Watch, int]] = []
    for name, module in list(model.named_modules()):
        if isinstance(module, PowerAttention):
            watch = _Watch(torch.reciprocal, "division")
            module.inverse = watch
            around = 7 + math.ceil(math.log2(module.power))
            watches.append((name, _setter(module, "inverse"), watch, around))
        elif isinstance(module, (nn.LayerNorm, *ACTIVATIONS)):
            parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            if isinstance(module, nn.LayerNorm):
                watch = _Watch(torch.rsqrt, "inverse square root")
                setattr(parent, leaf, PolynomialLayerNorm(module, watch))
                watches.append((name, _setter(getattr(parent, leaf), "rsqrt"), watch, 5))
            else:
                watch = _Watch(copy.deepcopy(module), type(module).__name__)
                setattr(parent, leaf, watch)
                watches.append((name, _setter(parent, leaf), watch, 0))
    for batch in calibration:
        model(batch)
    pieces = []
    for name, put, watch, around in watches:
        if not watch.low < watch.high:
            raise ValueError(f"calibration never reached {name}, or with one number: {watch.low}.")
        made = watch.polynomial(margin, tolerance)
        put(made)
        pieces.append(Piece(name, watch.what, made.low, made.high, around + made.depth))
    return model, pieces


@contextmanager
def range_penalties(model: nn.Module) -> Iterator[list[Float[Tensor, ""]]]:
    """Within it, numbers outside the interval of a polynomial in `model` go in as its border, and every call
    of one adds to the list the mean squared distance that they were moved, part of the graph: 0 inside,
    quadratic outside. Training on the loss plus a multiple of the sum brings them in, so that the model later
    works without it.

    Raises: ValueError for a model without polynomials; `to_polynomial` makes one with them.
    """
    found: list[Tensor] = []

    def move(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inside = args[0].clamp(module.low, module.high)
        found.append((args[0] - inside).square().mean())
        return (inside,)

    polynomials = [
        m for m in model.modules() if isinstance(m, Polynomial | PolynomialInverse | PolynomialRsqrt)
    ]
    if not polynomials:
        raise ValueError(f"expected a model with polynomials, got 0 in {type(model).__name__}.")
    handles = [m.register_forward_pre_hook(move) for m in polynomials]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Watch(nn.Module):
    """A function that remembers the smallest and the largest number it was called with."""

    def __init__(self, function: Callable[[Tensor], Tensor], what: str) -> None:
        super().__init__()
        self.function, self.what = function, what
        self.low, self.high = math.inf, -math.inf

    def forward(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        return self.function(x)

    def polynomial(self, margin: float, tolerance: float) -> Polynomial | PolynomialInverse | PolynomialRsqrt:
        if self.what == "division":
            return PolynomialInverse(self.low / margin, self.high * margin, tolerance=tolerance / 100)
        if self.what == "inverse square root":
            return PolynomialRsqrt(self.low / margin, self.high * margin, tolerance=tolerance / 100)
        middle, half = (self.low + self.high) / 2, margin**0.5 * (self.high - self.low) / 2
        return Polynomial(self.function, middle - half, middle + half, tolerance=tolerance)


def _setter(owner: nn.Module, name: str) -> Callable[[nn.Module], None]:
    return lambda module: setattr(owner, name, module)


def _raise(x: Tensor, power: int) -> Tensor:
    """x^power by products."""
    if power == 1:
        return x
    half = _raise(x, power // 2)
    return half * half * x if power % 2 else half * half
