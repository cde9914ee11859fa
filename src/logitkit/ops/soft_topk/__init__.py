"""The soft top-k: weights in (0, 1) that sum to k in each row."""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.checks import check_positive, values_visible
from logitkit.ops.dispatch import implementation
from logitkit.ops.soft_topk import reference


def soft_topk(
    scores: Float[Tensor, "*rows n"], k: float | Float[Tensor, "*rows"], alpha: float = 1.0
) -> Float[Tensor, "*rows n"]:
    """y_j = sigmoid(alpha (s_j + t)) with the row's t such that sum_j y_j = k.

    The entropy-regularised choice of k out of n: as alpha grows it becomes the indicator of the k largest. It
    is differentiable, with the gradient of the implicit function: with v = y (1 - y), dL/ds_j = alpha v_j
    (g_j - sum(v g) / sum(v)).

    scores: (..., n) of any floating dtype; half precision is computed and returned in float32. -inf gets
    weight 0. k: 0 < k < the number of finite scores; one for all rows, or one per row. It need not be whole.
    alpha: sharpness, in units of 1 / score.

    Error: at most 1e-6 in each weight and 3e-6 k in their sum (float32).

    Pays: always on a CPU: a row's search for t reads the row from cache, where torch's forms sort it, or
    write several arrays per step.

    Raises: ValueError for wrong shapes or dtypes, NaN, +inf, a k out of range, an alpha not above 0.

    Source: Amos, Koltun, Kolter, arXiv:1906.08707, equation 3 (with alpha = 1); Gupta et al.,
    arXiv:2310.10636, section 4.3.
    """
    s, rows = _check(scores, k, alpha)
    return _kernel(s).soft_topk(s, rows, alpha).reshape(scores.shape)


def soft_topk_threshold(
    scores: Float[Tensor, "*rows n"], k: float | Float[Tensor, "*rows"], alpha: float = 1.0
) -> Float[Tensor, "*rows"]:
    """The t of `soft_topk`, for those who need log sigmoid(alpha (s + t)) of some entries: dt/ds_j = -v_j /
    sum(v)."""
    s, rows = _check(scores, k, alpha)
    return _kernel(s).threshold(s, rows, alpha).reshape(scores.shape[:-1])


def _kernel(s: Tensor) -> ModuleType:
    return implementation(reference, s, cpu=True)


def _check(
    scores: Tensor, k: float | Tensor, alpha: float
) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " rows"]]:
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}.")
    if scores.ndim == 0 or scores.numel() == 0:
        raise ValueError(f"scores must have shape (..., n) and not be empty, got {tuple(scores.shape)}.")
    check_positive(alpha=alpha)
    s = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    s = s.reshape(-1, s.shape[-1]).contiguous()
    each = torch.as_tensor(k, dtype=torch.float64, device=s.device)
    if each.ndim > 0 and each.shape != scores.shape[:-1]:
        raise ValueError(
            f"k must be a number or have shape {tuple(scores.shape[:-1])}, got {tuple(each.shape)}."
        )
    each = each.reshape(-1).expand(len(s)).contiguous()
    if values_visible(each):
        least, most = float(each.min()), float(each.max())
        if not (least > 0 and most < s.shape[1]):
            wrong = least if least <= 0 else most
            raise ValueError(f"k must lie between 0 and n = {s.shape[1]}, got {wrong:g}.")
    return s, each
