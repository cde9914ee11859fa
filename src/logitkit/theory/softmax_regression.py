"""Softmax regression: one attention row as a regression, and how far a step on its weights or on its data
moves what it predicts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import least_squares
from torch import Tensor

from logitkit.ops import check_features, check_numbers, check_regression
from logitkit.ops.fitted import Fitted
from logitkit.registry import part


def softmax_response(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch n"]:
    """f(A, x) = exp(Ax) / <exp(Ax), 1>."""
    return (a @ x[..., None])[..., 0].softmax(dim=-1)


def softmax_regression_loss(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """L(x) = |f(A, x) - b|^2 / 2."""
    return (softmax_response(a, x) - b).square().sum(dim=-1) / 2


def softmax_regression_gradient(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch d"]:
    """dL/dx = A^T (diag f - f f^T) (f - b)."""
    return (_logit_gradient(a, x, b)[..., None, :] @ a)[..., 0, :]


def softmax_regression_hessian(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch d d"]:
    """d^2 L/dx^2 = A^T (J J + diag g - g f^T - f g^T) A, with J = diag f - f f^T and g = J (f - b)."""
    f, g = softmax_response(a, x), _logit_gradient(a, x, b)
    j = _jacobian(f)
    mixed = g[..., :, None] * f[..., None, :]
    return a.mT @ (j @ j + torch.diag_embed(g) - mixed - mixed.mT) @ a


def weight_step(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch n"], rate: float
) -> Float[Tensor, "*batch d"]:
    """x' = x - rate dL/dx: the weights after one step of gradient descent."""
    return x - rate * softmax_regression_gradient(a, x, b)


def data_step(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch n"], rate: float
) -> Float[Tensor, "*batch n d"]:
    """A' = A - rate dL/dA, dL/dA = J (f - b) x^T: the data after one step that leaves the weights alone."""
    return a - rate * _logit_gradient(a, x, b)[..., :, None] * x[..., None, :]


def target_shift(old: Float[Tensor, "*batch n"], new: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """b~ - b = f_old - f_new: what the target must change by for the old weights and data to have exactly the
    residual, and so the loss, of the new ones."""
    return old - new


def equivalent_data_shift(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], x_new: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch n d"]:
    """dA = A (x' - x) x^T / |x|^2, the smallest change of the data with (A + dA) x = A x'; ValueError for
    x = 0, which no data can make up for."""
    squares = x.square().sum(dim=-1)
    if not bool((squares > 0).all()):
        raise ValueError("x must not be 0: then A x is 0 for all data, and none give what x' gives.")
    change = (a @ (x_new - x)[..., None])[..., 0] / squares[..., None]
    return change[..., :, None] * x[..., None, :]


class ShiftBounds(NamedTuple):
    """Size of a target shift and two bounds of it. `sharp` is |A| |x' - x| / 2 when the weights change and
    |A' - A| |x| / 2 when the data do, as diag f - f f^T has a norm of at most 1/2. `log_paper` is the
    logarithm of the paper's n^1.5 exp(10 R^2) times the change, R the largest norm of a weight or data."""

    shift: Float[Tensor, "*batch"]
    sharp: Float[Tensor, "*batch"]
    log_paper: Float[Tensor, "*batch"]


def weight_shift_bounds(
    a: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"], x_new: Float[Tensor, "*batch d"]
) -> ShiftBounds:
    """|b~ - b| when x becomes x', and its bounds."""
    shift = target_shift(softmax_response(a, x), softmax_response(a, x_new)).norm(dim=-1)
    change, size = (x_new - x).norm(dim=-1), _spectral(a)
    largest = torch.stack([size, x.norm(dim=-1), x_new.norm(dim=-1)]).amax(dim=0)
    return ShiftBounds(shift, size * change / 2, _log_paper(change, largest, a.shape[-2]))


def data_shift_bounds(
    a: Float[Tensor, "*batch n d"], a_new: Float[Tensor, "*batch n d"], x: Float[Tensor, "*batch d"]
) -> ShiftBounds:
    """|b~ - b| when A becomes A', and its bounds."""
    shift = target_shift(softmax_response(a, x), softmax_response(a_new, x)).norm(dim=-1)
    change, size = _spectral(a_new - a), x.norm(dim=-1)
    largest = torch.stack([_spectral(a), _spectral(a_new), size]).amax(dim=0)
    return ShiftBounds(shift, change * size / 2, _log_paper(change, largest, a.shape[-2]))


def _jacobian(f: Tensor) -> Float[Tensor, "*batch n n"]:
    return torch.diag_embed(f) - f[..., :, None] * f[..., None, :]


def _logit_gradient(a: Tensor, x: Tensor, b: Tensor) -> Float[Tensor, "*batch n"]:
    """dL/d(Ax) = J (f - b)."""
    f = softmax_response(a, x)
    weighted = f * (f - b)
    return weighted - f * weighted.sum(dim=-1, keepdim=True)


def _spectral(a: Tensor) -> Float[Tensor, "*batch"]:
    return torch.linalg.matrix_norm(a, ord=2)


def _log_paper(change: Tensor, largest: Tensor, n: int) -> Float[Tensor, "*batch"]:
    return 1.5 * math.log(n) + 10 * largest.square() + change.log()


@part(
    "softmax_regression",
    "theory",
    title="The Closeness of In-Context Learning and Weight Shifting for Softmax Regression",
    paper="arXiv:2304.13276",
    number=33,
    tasks=("reranking",),
)
class SoftmaxRegression(Fitted):
    """Regression of a distribution over rows on a softmax of linear scores: one row of attention, with the
    context as data, in which a change of the weights and a change of the data can be compared.

    Equation: min_x L(x) = |f(A, x) - b|^2 / 2, f(A, x) = exp(Ax) / <exp(Ax), 1>. A step on the weights x or
    on the data A acts as a shift of the target, b~ - b = f_old - f_new (`target_shift`), which is at most
    |A| |x' - x| / 2 or |A' - A| |x| / 2 (`weight_shift_bounds`, `data_shift_bounds`). Every step on the
    weights has a data shift of rank one that predicts the same (`equivalent_data_shift`). `weight_step` and
    `data_step` are gradient descent on one and on the other.

    Shapes: `fit(a, b)` with rows a (n, d) and their shares b (n,) or (n, 1), which need not sum to 1;
    `predict(a)` (batch, d) -> f(A, x) (batch,), summing to 1 over the batch, in at least float32.
    `coefficient` (d,) is x in float64. The functions take any dimensions in front, a problem each.

    Defaults: none to set. Fitted in float64 by Gauss-Newton steps in a trust region from x = 0
    (`scipy.optimize.least_squares`).

    Raises: ValueError for a or b of another shape or dtype, NaN, an empty batch, or use before `fit`.

    Source: Li, Song, Xia, Yu, Zhou, arXiv:2304.13276, definition 1.3 and theorem 1.4. The sharp bounds follow
    from the softmax's Jacobian and are below the paper's, n^1.5 exp(10 R^2) times the change.

    Not for: choosing one row of many: b near one-hot is reached by ever larger x, and cross-entropy gets
    there without flat gradients.
    """

    coefficient: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coefficient", torch.empty(0, dtype=torch.float64))

    @torch.no_grad()
    def fit(
        self, a: Float[Tensor, "n d"], b: Float[Tensor, " n"] | Float[Tensor, "n 1"]
    ) -> SoftmaxRegression:
        """Minimise L from x = 0; returns self."""
        a = check_features(a).double()
        check_numbers(a, "a")
        b = check_regression(b, b)[0].double()
        if len(b) != len(a):
            raise ValueError(f"b must have shape ({len(a)},) to match a, got ({len(b)},).")
        rows, shares = a.cpu(), b.cpu()

        def residual(x: Tensor) -> Tensor:
            return softmax_response(rows, x) - shares

        def slope(x: Tensor) -> Tensor:
            return _jacobian(softmax_response(rows, x)) @ rows

        solved = least_squares(
            lambda x: residual(torch.from_numpy(x)).numpy(), torch.zeros(a.shape[1]).double().numpy(),
            jac=lambda x: slope(torch.from_numpy(x)).numpy(), xtol=1e-12, ftol=1e-14, gtol=1e-14,
        )  # fmt: skip
        self.coefficient = torch.from_numpy(solved.x).to(a.device)
        return self

    def predict(self, a: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The share of each row."""
        if not self.coefficient.numel():
            raise ValueError(f"softmax_regression must be fitted before it sees rows {tuple(a.shape)}.")
        exact = check_features(a, len(self.coefficient)).double()
        check_numbers(exact, "a")
        return softmax_response(exact, self.coefficient).to(torch.promote_types(a.dtype, torch.float32))
