"""Bisection for t on whole arrays, then two Newton steps, which autograd sees, up to second derivatives."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit.ops.checks import values_visible


def threshold(s: Float[Tensor, "rows n"], k: Float[Tensor, " rows"], alpha: float) -> Float[Tensor, " rows"]:
    z = alpha * s.double()
    with torch.no_grad():
        finite = torch.isfinite(z)
        count = finite.sum(1)
        if values_visible(s):
            check_values(s, k)
        # At low every sigmoid is below k / n, at high every one of a finite score above it.
        low = -z.amax(1) - torch.log(count / k) - 1
        high = -z.masked_fill(~finite, torch.inf).amin(1) - torch.log((count - k) / count) + 1
        for _ in range(80):
            middle = (low + high) / 2
            short = torch.sigmoid(z + middle[:, None]).sum(1) < k
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        t = (low + high) / 2
    for _ in range(2):
        y = torch.sigmoid(z + t[:, None])
        t = t - (y.sum(1) - k) / (y * (1 - y)).sum(1).clamp(min=1e-300)
    return (t / alpha).to(s.dtype) if s.dtype != torch.float64 else t / alpha


def soft_topk(s: Float[Tensor, "rows n"], k: Float[Tensor, " rows"], alpha: float) -> Float[Tensor, "rows n"]:
    t = threshold(s.double(), k, alpha)
    return torch.sigmoid(alpha * (s.double() + t[:, None])).to(s.dtype)


def check_values(s: Float[Tensor, "rows n"], k: Float[Tensor, " rows"]) -> None:
    """Raise ValueError for NaN, +inf, or a k that the finite scores of its row cannot make up."""
    if bool(torch.isnan(s).any()) or bool((s == torch.inf).any()):
        raise ValueError("scores must not hold NaN or +inf.")
    finite = torch.isfinite(s).sum(1)
    if bool((k >= finite).any()):
        row = int((k >= finite).nonzero()[0, 0])
        raise ValueError(
            f"k must be below the number of finite scores,"
            f" got k = {float(k[row]):g} and {int(finite[row])} in row {row}."
        )
