"""Attention with any weight of a score, without the matrix of weights."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops.attention import reference
from logitkit.ops.attention.weights import (
    NAMED,
    Elementwise,
    Normalized,
    Power,
    Sigmoid,
    Softmax,
    Softplus,
    Weight,
)
from logitkit.ops.dispatch import implementation, untraced, use
from logitkit.ops.gemm import onednn_keeps_float32

__all__ = ["Elementwise", "Normalized", "Power", "Sigmoid", "Softmax", "Softplus", "Weight", "attention"]

# Scores, and queries, from which blocks are faster than the reference, and than torch's softmax.
PAYS = 2**16, 16
PAYS_SOFTMAX = 2**21, 256
TRACED = 2**22
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    *,
    weight: str | Weight = "softmax",
    attn_mask: Bool[Tensor, "*any queries keys"] | Float[Tensor, "*any queries keys"] | None = None,
    is_causal: bool = False,
    causal_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch heads queries out"]:
    """sum_j A_ij v_j with A_ij = w(s_ij), or w(s_ij) / sum_k w(s_ik), and s = scale Q K^T + mask.

    Takes what torch's `scaled_dot_product_attention` takes, and a weight:

        "softmax"   exp(s) / sum exp(s)
        "sigmoid"   1 / (1 + exp(log n - s)), n the number of keys; not normalised
        "softplus"  softplus(s) / sum softplus(s), scale multiplied by log(dim) log(keys that the row sees)
        "power"     s^4 / (sum s^4 + 1e-3)

    or an object: `Softmax()`, `Sigmoid(bias)`, `Softplus(power, by_length)`, `Power(power, eps)`, or a
    subclass of `Elementwise` or `Normalized` of your own.

    query, key, value: (..., heads, tokens, dim); leading dimensions broadcast.
    attn_mask: True for a key that is seen, or numbers added to the scores; broadcasts to (..., heads,
        queries, keys). May be given together with is_causal.
    is_causal: query i sees the keys up to i + causal_offset. The offset is 0 as in torch, which aligns the
        first query with the first key. Queries that continue a cache of keys take `keys - queries`, with
        which the last query sees every key.
    scale: 1 / sqrt(dim) by default.
    enable_gqa: each key-value head serves heads / kv_heads consecutive query heads.

    A key that is hidden (False, -inf, or later) has the weight 0 exactly, whatever the weight is. A query
    that sees no key gives 0. Half precision is computed in float32. The result lies within 5e-6 of its
    largest entry, besides what rounding of the scores does to the weights. Under autocast query, key and
    value take its dtype first, as torch's function does. The CPU kernel keeps 8 MiB per thread that uses it.

    Pays: on a CPU in float32. Sigmoid and softmax take 0.55 to 0.65 times as long as torch's function from
    2,048 tokens on, forward and backward, softplus 0.8 times; memory grows with the tokens, not with their
    square. The softmax is torch's own function where that is faster: in half precision, in float64, on an
    accelerator, for few or short sequences and under `torch.compile`. On a GPU there is a kernel for the
    sigmoid (and the softmax, when asked for) without a mask; it has not been timed. Gradients of attn_mask
    need the whole matrix; a bias that is learned per head goes into the scores as one more dimension of
    query and key.

    Raises: ValueError for shapes that do not fit, other dtypes than floats, or an unknown weight.

    Source: torch's `scaled_dot_product_attention` for the arguments; Rabe, Staats, arXiv:2112.05682, and Dao,
    arXiv:2307.08691, for blocks recomputed in the backward; the weights name theirs.
    """
    weight = _weight(weight)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) if x.dtype != torch.float64 else x for x in (query, key, value))
    batch = _check(query, key, value, enable_gqa)
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        query, key, value = (x.expand(*batch, *x.shape[-3:]) for x in (query, key, value))
    shape = (*query.shape[:-1], key.shape[-2])
    if attn_mask is not None:
        attn_mask = _check_mask(attn_mask, shape, query)
    if 0 in (query.numel(), key.numel(), value.numel()):
        return query.new_zeros(*query.shape[:-1], value.shape[-1]) + 0 * (
            query.sum() + key.sum() + value.sum()
        )
    causal = causal_offset if is_causal else None
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    size = query.shape[:-1].numel() * key.shape[-2], query.shape[-2]
    many = all(n >= least for n, least in zip(size, PAYS, strict=True))
    with_gradient = attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled()
    if use.forced is None and isinstance(weight, Softmax):
        # The backward's gain is larger.
        trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        least_for_softmax = (PAYS_SOFTMAX[0] // (2 if trains else 1), PAYS_SOFTMAX[1])
        ours = (
            all(n >= least for n, least in zip(size, least_for_softmax, strict=True))
            and query.device.type == "cpu"
            and query.dtype == torch.float32
            and not with_gradient
            and not torch.compiler.is_compiling()
            and onednn_keeps_float32()
        )
        if not ours:
            return _sdpa(query, key, value, attn_mask, causal, scale, enable_gqa)
    # The compiler may see into the reference where the whole matrix is small.
    traced = attn_mask is None and size[0] <= TRACED
    blocks = _blocks if traced else untraced(_blocks)
    return blocks(query, key, value, attn_mask, causal, scale, weight, many, with_gradient)


def _blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: int | None,
    scale: float,
    weight: Weight,
    many: bool,
    with_gradient: bool,
) -> Tensor:
    """Heads and batch as one dimension, masks and row scales to match, and the implementation called."""
    batch, heads = query.shape[:-3], query.shape[-3]
    mask_of = None
    if mask is not None:
        mask = mask[(None,) * (query.ndim - mask.ndim)]
        lead = mask.shape[:-2]
        mask_of = torch.arange(lead.numel()).view(lead).expand(*batch, heads).flatten().tolist()
        mask = mask.reshape(-1, *mask.shape[-2:])
    offer = "the mask needs a gradient" if with_gradient else many
    if type(weight) not in (Softmax, Sigmoid):
        gpu: bool | str = "it has the softmax and the sigmoid only"
    elif mask is not None:
        gpu = "it takes no mask"
    elif query.dtype == torch.float64 or max(query.shape[-1], value.shape[-1]) > 256:
        gpu = "it takes no float64, and no dim above 256"
    else:
        gpu = query.is_cuda
    kernel: ModuleType = implementation(reference, query, cpu=offer, triton=gpu)
    factor: float | Tensor = scale
    if type(weight).stretch is not Weight.stretch:
        visible = _visible(mask, causal, query.shape[-2], key.shape[-2], query.device)
        stretch = weight.stretch(visible.double(), query.shape[-1])
        if stretch is not None:
            wide = torch.float64 if query.dtype == torch.float64 else torch.float32
            factor = (scale * stretch).to(wide).unsqueeze(-1)
            factor = factor[mask_of] if mask_of is not None and len(factor) > 1 else factor
    result = kernel.attention(
        query.flatten(0, -3),
        key.flatten(0, -3),
        value.flatten(0, -3),
        mask,
        mask_of,
        causal,
        factor,
        weight.resolve(key.shape[-2]),
    )
    return result.view(*batch, heads, *result.shape[1:])


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: int | None,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    if query.ndim > 4 and (mask is None or mask.ndim < 4):
        # Torch's kernel takes four dimensions only. Where each head is alone its result is contiguous.
        alone = mask is None and query.shape[-3] == key.shape[-3]
        q, k, v = (x.flatten(0, -3).unsqueeze(1) if alone else x.flatten(0, -4) for x in (query, key, value))
        mixed = _sdpa(q, k, v, mask, causal, scale, enable_gqa and not alone)
        return mixed.reshape(*query.shape[:-1], value.shape[-1])
    if causal == 0 and mask is None:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
    if causal is not None:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril(causal)
        if mask is None or mask.dtype == torch.bool:
            mask = seen if mask is None else mask & seen
        else:
            mask = torch.where(seen, mask, -torch.inf)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
    )


def _visible(
    mask: Tensor | None, causal: int | None, queries: int, keys: int, device: torch.device
) -> Tensor:
    """How many keys each query sees, (masks or 1, queries)."""
    rows = torch.full((queries,), keys, device=device)
    if causal is not None:
        rows = (torch.arange(queries, device=device) + causal + 1).clamp(0, keys)
    if mask is None:
        return rows[None]
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    if causal is None or seen.shape[1] > 1:
        seen = seen.expand(-1, -1, keys)
        if causal is not None:
            seen = seen & torch.ones(queries, keys, dtype=torch.bool, device=device).tril(causal)
        return seen.sum(-1).expand(-1, queries)
    before = F.pad(seen.expand(-1, 1, keys).cumsum(-1), (1, 0))
    return before[:, 0, rows]


def _weight(weight: str | Weight) -> Weight:
    if isinstance(weight, Weight):
        return weight
    if weight not in NAMED:
        raise ValueError(f"the weight must be one of {sorted(NAMED)} or a Weight, got {weight!r}.")
    return NAMED[weight]


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> torch.Size:
    """The common batch dimensions."""
    shapes = f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(f"query, key and value must be (..., heads, tokens, dim), {shapes}.")
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        raise ValueError(f"query and key must have the same dim, at least 1, {shapes}.")
    if key.shape[-3:-1] != value.shape[-3:-1]:
        raise ValueError(f"key and value must have the same heads and tokens, {shapes}.")
    groups = query.shape[-3] % max(key.shape[-3], 1) == 0 if enable_gqa else query.shape[-3] == key.shape[-3]
    if not groups:
        wanted = (
            "heads of query a multiple of those of key" if enable_gqa else "as many heads in query as in key"
        )
        raise ValueError(f"expected {wanted}, {shapes}.")
    if len({x.dtype for x in (query, key, value)}) > 1 or query.dtype not in _FLOATS:
        raise ValueError(
            f"query, key and value must share a floating dtype, got {query.dtype}, {key.dtype}, "
            f"{value.dtype}."
        )
    if query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        return query.shape[:-3]
    try:
        return torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    except RuntimeError:
        raise ValueError(f"leading dimensions must broadcast, {shapes}.") from None


def _check_mask(mask: Tensor, shape: tuple[int, ...], query: Tensor) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attn_mask must be boolean or floating, got {mask.dtype}.")
    try:
        fits = torch.broadcast_shapes(mask.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"attn_mask must broadcast to {tuple(shape)}, got {tuple(mask.shape)}.")
    mask = mask[(None,) * (2 - mask.ndim)]
    if mask.dtype == torch.bool:
        return mask
    return mask.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
