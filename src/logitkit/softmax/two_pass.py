"""The two-pass softmax: exponentials as pairs of mantissa and exponent, which add up without overflow."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from logitkit import ops
from logitkit.ops import check_positive
from logitkit.registry import part
from logitkit.softmax.base import Normalizer, check_scores

_LOG2 = math.log(2.0)
# The exponent of 0. Sums of exponents stay finite with it, where those of -inf would be NaN.
_NONE = -1e30


class ExtExp(NamedTuple):
    """Numbers m 2^n, the exponent a float of its own: no exponential of a float overflows it.

    m: mantissas, 0 or of the order of 1; n: whole exponents, in the same floating dtype.
    """

    m: Tensor
    n: Tensor

    @classmethod
    def of(cls, x: Float[Tensor, "..."]) -> ExtExp:
        """e^x: n = round(x / ln 2), m = e^(x - n ln 2) in [0.7, 1.42]. -inf is 0; +inf and NaN are NaN."""
        n = torch.round(x.double() / _LOG2)
        m = torch.exp(x.double() - n * _LOG2)  # in float64, in which n ln 2 keeps the digits of x
        empty = x == -torch.inf
        m = m.masked_fill(empty, 0.0).masked_fill(x == torch.inf, torch.nan)
        return cls(m.to(x.dtype), n.masked_fill(empty, _NONE).to(x.dtype))

    def __add__(self, other: ExtExp) -> ExtExp:  # type: ignore[override]
        """The sum, entry by entry: M 2^(N - max) + m 2^(n - max)."""
        n = torch.maximum(self.n, other.n)
        return ExtExp(self.m * _power(self.n - n) + other.m * _power(other.n - n), n)

    def sum(self, dim: int = -1) -> ExtExp:
        """The sum along an axis, which stays with length 1."""
        n = self.n.amax(dim, keepdim=True)
        return ExtExp((self.m * _power(self.n - n)).sum(dim, keepdim=True), n)

    def over(self, total: ExtExp) -> Float[Tensor, "..."]:
        """m 2^(n - N) / M, an ordinary number where it is at most about 1."""
        return self.m * _power(self.n - total.n) / total.m

    def log(self) -> Float[Tensor, "..."]:
        """log(m 2^n)."""
        return self.m.log() + self.n * _LOG2


def _power(n: Tensor) -> Tensor:
    """2^n for n <= 0, and exactly 0 below 2^-150 (2^-1080 in float64) instead of what wraps around."""
    lowest = -1080.0 if n.dtype == torch.float64 else -150.0
    return torch.exp2(n.clamp(min=lowest)).masked_fill(n < lowest, 0.0)


class TwoPassState:
    """The sum of exponentials of scores that come in pieces, or that lie on several machines.

    >>> state = TwoPassState()
    >>> for piece in x.split(4096, dim=-1):
    ...     state.update(piece)
    >>> weights = [state.weights(piece) for piece in x.split(4096, dim=-1)]
    """

    def __init__(self, total: ExtExp | None = None) -> None:
        self.total = total

    def update(self, x: Float[Tensor, "... n"]) -> TwoPassState:
        """Add e^x along the last axis. Returns self."""
        m, n = ExtExp.of(x).sum()
        total = ExtExp(m.double(), n.double())  # so that many small pieces cost no digits
        self.total = total if self.total is None else self.total + total
        return self

    def merge(self, other: TwoPassState) -> TwoPassState:
        """The state of both sets of scores: the same in any order, to rounding."""
        if self.total is None or other.total is None:
            return TwoPassState(self.total or other.total)
        return TwoPassState(self.total + other.total)

    def weights(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """The softmax weights of some of the scores that were added."""
        if self.total is None:
            raise ValueError("the state has seen 0 scores; update it with all of them first.")
        return ExtExp.of(x).over(self.total).to(x.dtype)

    def logsumexp(self) -> Float[Tensor, "... 1"]:
        """log sum e^x of all scores added."""
        if self.total is None:
            raise ValueError("the state has seen 0 scores; update it first.")
        return self.total.log()


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunk: int) -> Tensor:
        state = TwoPassState()
        for piece in x.split(chunk, dim=-1):
            state.update(piece)
        y = torch.empty_like(x)
        for piece, out in zip(x.split(chunk, dim=-1), y.split(chunk, dim=-1), strict=True):
            out.copy_(state.weights(piece))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return y * (g - (y * g).sum(dim=-1, keepdim=True)), None


def two_pass_softmax(x: Float[Tensor, "..."], dim: int = -1, chunk: int = 65536) -> Float[Tensor, "..."]:
    """e^(x_i) / sum_j e^(x_j) along `dim` without a pass for the maximum; see `TwoPass`."""
    check_positive(chunk=chunk)
    scores = check_scores(x, dim).movedim(dim, -1)
    return _TwoPass.apply(scores, chunk).movedim(-1, dim).to(x.dtype)


@part(
    "two_pass",
    "softmax",
    title="The Two-Pass Softmax Algorithm",
    paper="arXiv:2001.04438",
    number=7,
    replaces="softmax",
)
class TwoPass(Normalizer):
    """Two-pass softmax: softmax of scores that are streamed, sharded, or too long for the caches.

    Equation: p_i = m_i 2^(n_i - N) / M, e^(x_i) = m_i 2^(n_i), n_i = round(x_i / ln 2), and M 2^N the sum of
    all: (M, N) + (m, n) = (M 2^(N - K) + m 2^(n - K), K), K = max(N, n). The exponents are floats of their
    own, so nothing overflows and no pass for the maximum is needed: x is read twice, p written once.

    Shapes: x of any shape, weights of the same, summing to 1 along `dim`. Half-precision scores are computed
    in float32; weights come back in the scores' dtype, `log` in float32. `TwoPassState` adds up pieces.

    Defaults: the last axis, in pieces of `chunk` = 65,536 scores.

    Raises: ValueError for scores that are not floating point, empty or NaN, a missing axis, or a chunk below
    1. A row of -inf alone is NaN, as in torch.

    Source: Dukhan and Ablavatski, arXiv:2001.04438, algorithm 3.

    Not for: speed on a CPU, for which `ops.softmax` compiles the same algorithm, or on short rows, where
    `torch.softmax` is at the machine's limit.
    """

    def __init__(self, dim: int = -1, chunk: int = 65536) -> None:
        super().__init__(dim)
        check_positive(chunk=chunk)
        self.chunk = chunk

    def log(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p, in at least float32: x less the log of the sum, which is one reading more."""
        return ops.log_softmax(check_scores(x, self.dim), self.dim)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return two_pass_softmax(x, self.dim, self.chunk)
