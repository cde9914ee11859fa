"""The temperature that minimises the likelihood loss of softmax(z / T)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.checks import check_labels, check_logits
from logitkit.ops.dispatch import implementation
from logitkit.ops.temperature import reference

# The temperature stays within this factor of the logits' own spread.
LIMIT = 100.0
# Rows of the subsample on which the search starts.
SAMPLE = 2048


@torch.no_grad()
def fit_temperature(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> float:
    """argmin_T -mean_i log softmax(z_i / T)_{y_i}, in the logits' units.

    Halley's method in beta = 1/T, in which the objective is convex, kept inside a shrinking bracket. It
    starts from the answer on 2,048 rows, which leaves about two passes over all of them. Logits of any
    floating dtype are read as they are, all arithmetic is float64, and the gradient of the loss in log T is
    below 1e-12 at the answer.

    T is held within a factor 100 of the logits' root mean square deviation from their row mean. The bound is
    met when there is no minimum inside it: every label has the largest logit (T at its least), or the logits
    are no better than chance (T at its largest). Logits that are all equal give 1.

    Pays: always on a CPU (one fused pass per step, some 20 times faster than torch's LBFGS). On a GPU plain
    torch runs.

    Raises: ValueError for wrong shapes or dtypes, logits that are not finite, labels out of range, an empty
    batch.

    Source: Guo, Pleiss, Sun, Weinberger, arXiv:1706.04599, equation 9.
    """
    z = check_logits(logits.detach()).contiguous()
    target = check_labels(target, z.shape[0], z.shape[1]).contiguous()
    kernel = implementation(reference, z, cpu=True)
    scale = kernel.spread(z)
    if not scale < float("inf"):
        bad = int((~torch.isfinite(z)).sum())
        raise ValueError(f"logits to fit a temperature on must be finite, got {bad} that are not.")
    if scale == 0:
        return 1.0
    start = 1 / scale
    if len(z) > 4 * SAMPLE:
        rows = torch.linspace(0, len(z) - 1, SAMPLE).long().to(z.device)
        few, labels = z[rows], target[rows]
        start = _root(lambda beta: kernel.derivatives(few, labels, beta), start, scale)
    return 1 / _root(lambda beta: kernel.derivatives(z, target, beta), start, scale)


def _root(derivatives: Callable[[float], tuple[float, float, float]], beta: float, scale: float) -> float:
    """The minimum of a convex function of beta in [1/LIMIT, LIMIT] / scale, from its first three
    derivatives."""
    least, most = 1 / (LIMIT * scale), LIMIT / scale
    low, high = least, most
    tried_least = tried_most = False
    for _ in range(200):
        first, second, third = derivatives(beta)
        if first == 0 or (first > 0 and beta == least) or (first < 0 and beta == most):
            return beta
        low, high = (beta, high) if first < 0 else (low, beta)
        curved = 2 * second**2 - first * third
        halley = beta - 2 * first * second / curved if curved > 0 else (most if first < 0 else least)
        if low < halley < high:
            # The next error is about the cube of this step.
            if abs(halley - beta) <= 3e-5 * beta:
                return halley
            beta = halley
        elif halley <= low == least and not tried_least:
            beta, tried_least = least, True
        elif halley >= high == most and not tried_most:
            beta, tried_most = most, True
        else:
            beta = (low * high) ** 0.5
    return beta
