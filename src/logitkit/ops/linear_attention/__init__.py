"""Attention whose weight is a product of features, in time linear in the tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.dispatch import implementation
from logitkit.ops.linear_attention import reference

State = tuple[Tensor, Tensor]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch heads keys dim"],
    value: Float[Tensor, "*batch heads keys out"],
    *,
    feature: str | Callable[[Tensor], Tensor] | None = "elu+1",
    is_causal: bool = False,
    normalize: bool = True,
    eps: float = 0.0,
    initial_state: State | None = None,
    return_state: bool = False,
) -> Float[Tensor, "*batch heads queries out"] | tuple[Float[Tensor, "*batch heads queries out"], State]:
    """sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + eps), by the sums
    S = sum_j phi(k_j) v_j^T and z = sum_j phi(k_j).

    query, key, value: (..., heads, tokens, dim), the leading dimensions equal.
    feature: phi, applied to query and key: "elu+1", a function of a tensor, or None where they are features
        already. A feature of 0 hides a key.
    is_causal: query i sees the keys up to i (as many queries as keys), and what the initial state has seen.
    normalize: divide by the weights' sum. For a denominator of your own, or shared with other terms, pass
        False; a column of ones in value then gives the plain sum beside the output.
    eps: added to the denominators, for features that can all be 0.
    initial_state: (S, z), shapes (..., heads, dim of phi, out) and (..., heads, dim of phi), from keys that
        came before.
    return_state: also return (S, z) after the last key. One token at a time, each call given the state of the
        one before, decodes what the causal form gives in parallel.

    Half precision is computed in float32, and states are float32. With positive features the result lies
    within 2e-6 times its largest entry of its value. Denominators near 0, which features of either sign
    allow, lose that.

    Pays: for tokens in number well above the features. On a CPU in float32 the causal form at 8,192 tokens
    takes a twentieth of the time of torch's softmax attention. On a GPU there is a kernel for float32 and
    half precision, for any dim; it has not been timed. The causal form keeps a state per 64 tokens while it
    runs. Elsewhere, and in float64, plain torch runs, in chunks of 64 tokens.

    Raises: ValueError for shapes that do not fit, other dtypes than floats, or an unknown feature.

    Source: Katharopoulos et al., arXiv:2006.16236; chunks: Hua et al., arXiv:2202.10447.
    """
    _check(query, key, value, is_causal)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) if x.dtype != torch.float64 else x for x in (query, key, value))
    elu = feature == "elu+1"
    if callable(feature):
        query, key = feature(query), feature(key)
    elif not (elu or feature is None):
        raise ValueError(f'feature must be "elu+1", a function or None, got {feature!r}.')
    lead, out, dim = query.shape[:-2], value.shape[-1], query.shape[-1]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if initial_state is None:
        initial_state = query.new_zeros(*lead, dim, out, dtype=wide), query.new_zeros(*lead, dim, dtype=wide)
    for x, shape in zip(initial_state, ((*lead, dim, out), (*lead, dim)), strict=True):
        if x.shape != shape:
            raise ValueError(f"the initial state must have shape {shape} here, got {tuple(x.shape)}.")
    matrix, vector = (x.to(wide) for x in initial_state)
    empty = 0 in (query.numel(), key.numel(), value.numel())
    offer: bool | str = True
    if query.dtype == torch.float64:
        offer = "it takes no float64"
    elif empty:
        offer = "there is nothing to do"
    kernel = implementation(reference, query, cpu=offer, triton=offer)
    result, matrix, vector = kernel.linear_attention(
        *(x.flatten(0, -3) for x in (query, key, value)),
        matrix.flatten(0, -3),
        vector.flatten(0, -2),
        is_causal,
        normalize,
        eps,
        elu,
    )
    result = result.view(*lead, *result.shape[1:])
    return (result, (matrix.view(*lead, dim, out), vector.view(*lead, dim))) if return_state else result


def _check(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> None:
    shapes = f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(f"query, key and value must be (..., heads, tokens, dim), {shapes}.")
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise ValueError(f"query, key and value must have the same leading dimensions, {shapes}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same dim, {shapes}.")
    if key.shape[-2] != value.shape[-2] or (causal and query.shape[-2] != key.shape[-2]):
        same = "query, key and value" if causal else "key and value"
        raise ValueError(f"{same} must have the same number of tokens, {shapes}.")
    if len({x.dtype for x in (query, key, value)}) > 1 or query.dtype not in _FLOATS:
        raise ValueError(
            f"query, key and value must share a floating dtype, got {query.dtype}, {key.dtype}, "
            f"{value.dtype}."
        )
