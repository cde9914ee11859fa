"""Log-space functions that keep their digits where the textbook form loses them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log1mexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - exp(x)) for x <= 0, accurate to the last digits over the whole range.

    Uses log(-expm1(x)) for x > -log 2 and log1p(-exp(x)) below (Maechler, "Accurately computing
    log(1 - exp(-|a|))", 2012). x = 0 gives -inf. The branch not taken is evaluated at a harmless point, so
    gradients are finite wherever the derivative is.
    """
    near = x > -math.log(2.0)
    close = torch.where(near, x, x.new_tensor(-0.5))
    far = torch.where(near, x.new_tensor(-1.0), x)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def comp_sum(log_p: Float[Tensor, "*shape"], tau: float) -> Float[Tensor, "*shape"]:
    """Phi_tau(1/p - 1) from log p: ((1/p)^(1-tau) - 1) / (1 - tau), and -log p at tau = 1.

    With a = 1 - tau this is expm1(-a log p) / a, so p near 1 and tau near 1 keep their digits
    (Mao, Mohri, Zhong, arXiv:2304.07288, eq. 5).
    """
    a = 1.0 - tau
    return -log_p if a == 0 else torch.expm1(-a * log_p) / a


def log_odds_against(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """u = log sum_{k != y} exp(h_k - h_y) = log(1/p_y - 1): the log-odds that the label is not y.

    Both log p_y = logsigmoid(-u) and log(1 - p_y) = logsigmoid(u) keep their digits, however close p_y is
    to 0 or 1.
    """
    y = target[:, None]
    return torch.logsumexp(logits.scatter(-1, y, -torch.inf), dim=-1) - logits.gather(-1, y)[:, 0]
