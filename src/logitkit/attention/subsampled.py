"""Stochastically subsampled self-attention: training on random parts of the keys, and self-ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention.base import MultiheadAttention, repeat_heads
from logitkit.attention.power import power_attention
from logitkit.attention.sigmoid import sigmoid_attention
from logitkit.attention.softmax import softmax_attention
from logitkit.attention.softplus import softplus_attention
from logitkit.registry import Choice, Whole, part

Mode = Literal["unlocal", "local"]
OF: dict[str, Callable[..., Tensor]] = {
    "power": power_attention, "sigmoid": sigmoid_attention, "softmax": softmax_attention,
    "softplus": softplus_attention,
}  # fmt: skip


def random_windows(
    tokens: int,
    windows: int,
    mode: Mode = "unlocal",
    jitter: float | None = None,
    device: Any = None,
    shift: bool = False,
) -> Int[Tensor, "windows size"]:
    """Every token in one of so many windows of equal size, drawn at random; -1 fills the last.

    unlocal: a uniform permutation, cut. local: token i goes by i + u, u uniform in [-jitter, jitter], so that
    a window holds neighbours mostly; jitter is a window's size by default. shift: the cuts lie up to
    size - 1 tokens earlier, with as many -1 in the first window, and there may be one window more.
    """
    size = math.ceil(tokens / windows)
    if mode == "unlocal":
        order = torch.randperm(tokens, device=device)
    else:
        moved = (2 * torch.rand(tokens, device=device) - 1) * (size if jitter is None else jitter)
        order = (torch.arange(tokens, device=device) + moved).argsort()
    before = int(torch.randint(size, ())) if shift else 0
    return F.pad(order, (before, -(before + tokens) % size), value=-1).view(-1, size)


def within_windows(
    mix: Callable[..., Tensor],
    windows: Int[Tensor, "windows size"],
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch heads tokens dim"],
    value: Float[Tensor, "batch heads tokens out"],
    attn_mask: Bool[Tensor, "*any tokens"] | Float[Tensor, "*any tokens"] | None = None,
    is_causal: bool = False,
    class_tokens: int = 0,
) -> Float[Tensor, "batch heads tokens out"]:
    """mix(query, key, value, attn_mask=...) within each window, with the masks of the tokens' own order. The
    first `class_tokens`, which `windows` leave out, are in every window: seen by all, and seeing all."""
    tokens, size = query.shape[-2], windows.shape
    everywhere = torch.arange(class_tokens, device=windows.device).expand(len(windows), -1)
    keys = torch.cat([everywhere, windows], dim=1)
    mask: Tensor | None = None
    if is_causal or windows.numel() > tokens - class_tokens:
        mask = (keys >= 0)[:, None, :]
        if is_causal:
            mask = mask & (keys[:, None, :] <= windows[:, :, None])  # (windows, size or 1, size)
    if attn_mask is not None:
        wide = attn_mask[(None,) * (4 - attn_mask.ndim)].expand(-1, -1, tokens, key.shape[-2])
        own = wide[:, :, windows.clamp(min=0)[:, :, None], keys.clamp(min=0)[:, None, :]]
        if mask is None:
            mask = own
        else:
            mask = own & mask if own.dtype == torch.bool else own.masked_fill(~mask, -torch.inf)
    # Windows take the place of heads.
    order = torch.where(windows < 0, windows, windows - class_tokens).flatten()
    place = order.new_empty(tokens - class_tokens + 1)
    place[order] = torch.arange(len(order), device=order.device)  # -1 writes to the last
    place = place[:-1]
    parts = [
        _Reordered.apply(x[:, :, class_tokens:], order, place).unflatten(2, size) for x in (query, key, value)
    ]
    if class_tokens:
        for n, x in ((1, key), (2, value)):
            first = x[:, :, None, :class_tokens].expand(-1, -1, len(windows), -1, -1)
            parts[n] = torch.cat([first, parts[n]], dim=3)
    mixed = _Reordered.apply(mix(*parts, attn_mask=mask).flatten(2, 3), place, order)
    if class_tokens == 0:
        return mixed
    if attn_mask is not None and attn_mask.shape[-2] > 1:
        attn_mask = attn_mask[..., :class_tokens, :]
    first = mix(query[:, :, :class_tokens], key, value, attn_mask=attn_mask, is_causal=is_causal)
    return torch.cat([first, mixed], dim=2)


class _Reordered(torch.autograd.Function):
    """Tokens (batch, heads, tokens, dim) in an order, with 0 where it is -1; `back` undoes the order. So the
    gradient is reordered too, where that of a selection is added up token by token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        if len(order) <= x.shape[2]:
            return x.index_select(2, order)
        return x.index_select(2, order.clamp(min=0)).masked_fill_((order < 0)[:, None], 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return _Reordered.apply(g, back, order), None, None


@part(
    "subsampled",
    "attention",
    number=214,
    title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
    paper="arXiv:2306.01705",
    replaces="softmax",
    aliases=("ssa",),
    tasks=("sequence", "classification"),
    search_space={"windows": Whole(2, 8), "mode": Choice("unlocal", "local")},
)
class SubsampledAttention(MultiheadAttention):
    """Subsampled attention: a training step sees a random part of the keys, at a fraction of the cost and as
    a regulariser; the trained model is dense, or an ensemble of itself.

    Equation: while training, the n tokens are permuted at random, cut into `windows` of size w = n / windows,
    and out_i = sum_{j in window(i)} a_ij v_j, a_i the weights of `of` over the window. The permutation is
    new at every call, and the same for all sequences of the batch. In evaluation all keys are seen.

    Shapes: x (batch, tokens, embed_dim) -> same, and the weights (batch, tokens, tokens), 0 outside the
    window, or None. Where windows does not divide n the last one is smaller.

    Defaults: 4 windows; mode "unlocal", a uniform permutation. "local" sorts tokens by their position plus
    uniform noise of up to `jitter`, by default a window's size: windows then hold neighbours mostly; with
    `shift` they begin anywhere. The first `class_tokens`, none by default, are in every window. `dense`
    on the module: None follows training and evaluation, True or False is always, or never, dense; `set_dense`
    sets it in a whole model. The paper ends training with some dense steps. `SelfEnsemble` averages passes.

    Raises: ValueError for sizes that do not fit, an unknown mode or `of`, fewer than 1 window, a shift of
    windows that are not local, negative class_tokens, other dtypes than floats, an empty batch or NaN.

    Source: Hussain, Zaki, Subramanian, KDD 2023, arXiv:2306.01705, SSA and its local variant.

    Not for: dropout of the weights on top.
    """

    takes = MultiheadAttention.takes - {"cross"}

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
        windows: int = 4,
        mode: Mode = "unlocal",
        jitter: float | None = None,
        shift: bool = False,
        class_tokens: int = 0,
        of: str = "softmax",
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        if windows < 1:
            raise ValueError(f"windows must be at least 1, got {windows}.")
        if mode not in ("unlocal", "local"):
            raise ValueError(f"mode must be 'unlocal' or 'local', got {mode!r}.")
        if jitter is not None and not jitter >= 0:
            raise ValueError(f"jitter must not be negative, got {jitter}.")
        if of not in OF:
            raise ValueError(f"of must be one of {sorted(OF)}, got {of!r}.")
        if shift and mode != "local":
            raise ValueError(f"shift moves windows of neighbours, mode='local', and mode is {mode!r}.")
        if class_tokens < 0:
            raise ValueError(f"class_tokens must not be negative, got {class_tokens}.")
        self.windows, self.mode, self.jitter, self.of = windows, mode, jitter, of
        self.shift, self.class_tokens = shift, class_tokens
        self.dense: bool | None = None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        mix, tokens = OF[self.of], query.shape[-2]
        others = tokens - self.class_tokens
        dense = not self.training if self.dense is None else self.dense
        if dense or key.shape[-2] != tokens or self.windows == 1 or others < 1:
            return mix(
                query, key, value, mask, is_causal=causal is not None, enable_gqa=True,
                causal_offset=causal or 0,
            )  # fmt: skip
        key, value = repeat_heads(key, self.num_heads), repeat_heads(value, self.num_heads)
        windows = random_windows(
            others, min(self.windows, others), self.mode, self.jitter, query.device, self.shift
        )
        windows = torch.where(windows < 0, windows, windows + self.class_tokens)
        return within_windows(mix, windows, query, key, value, mask, causal is not None, self.class_tokens)


def set_dense(model: nn.Module, dense: bool | None) -> nn.Module:
    """Set `dense` of every `SubsampledAttention` in the model; returns it."""
    for module in model.modules():
        if isinstance(module, SubsampledAttention):
            module.dense = dense
    return model


class SelfEnsemble(nn.Module):
    """The log of the mean of a model's class probabilities over `samples` subsampled passes.

    In the place of the model's logits: their softmax is the mean. The model is left as it was.
    """

    def __init__(self, model: nn.Module, samples: int = 8) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        self.model, self.samples = model, samples

    def forward(self, x: Tensor) -> Float[Tensor, "*batch classes"]:
        before = {m: m.dense for m in self.model.modules() if isinstance(m, SubsampledAttention)}
        if not before:
            raise ValueError("a self-ensemble needs a model with SubsampledAttention, got 0 such layers.")
        set_dense(self.model, False)
        try:
            passes = [self.model(x).log_softmax(-1) for _ in range(self.samples)]
        finally:
            for module, dense in before.items():
                module.dense = dense
        return torch.stack(passes).logsumexp(0) - math.log(self.samples)
