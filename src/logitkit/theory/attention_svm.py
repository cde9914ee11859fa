"""Attention as a support vector machine: the direction in which gradient descent on its weights goes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops import check_numbers, check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import Choice, part

Norm = Literal["fro", "nuc"]


def attention_output(
    tokens: Float[Tensor, "*problems n tokens dim"],
    query: Float[Tensor, "*problems n dim"],
    head: Float[Tensor, "*problems dim"],
    weight: Float[Tensor, "*problems dim dim"],
) -> Float[Tensor, "*problems n"]:
    """f_i = v^T X_i^T softmax(X_i W z_i)."""
    s, u = _attended(tokens, query, head, weight)
    return (s * u).sum(-1)


def attention_gradient(
    tokens: Float[Tensor, "*problems n tokens dim"],
    query: Float[Tensor, "*problems n dim"],
    head: Float[Tensor, "*problems dim"],
    y: Float[Tensor, "*problems n"],
    weight: Float[Tensor, "*problems dim dim"],
) -> Float[Tensor, "*problems dim dim"]:
    """dL/dW of L = mean_i log(1 + exp(-y_i f_i)): the mean of -y_i sigmoid(-y_i f_i) X_i^T (diag s_i - s_i
    s_i^T) X_i v z_i^T.

    Taken relative to the token that is attended to most, so that the direction is right where s is 1 to all
    digits.
    """
    s, u = _attended(tokens, query, head, weight)
    top = s.argmax(-1, keepdim=True)
    apart = tokens - tokens.gather(-2, top[..., None].expand(*top.shape, tokens.shape[-1]))
    less = u - u.gather(-1, top)
    mean = (s * less).sum(-1, keepdim=True)
    moved = s * (less - mean)
    slope = -y * torch.sigmoid(-y * (s * u).sum(-1))
    rows = slope[..., None] * (moved[..., None, :] @ apart)[..., 0, :]
    return rows.mT @ query / y.shape[-1]


class Descent(NamedTuple):
    """Where normalised gradient descent ended, W = K Q^T if it was on K and Q, and the directions W / |W| of
    `kept` moments on the way, evenly spaced, the last one included."""

    weight: Float[Tensor, "*problems dim dim"]
    directions: Float[Tensor, "kept *problems dim dim"]


def attention_descent(
    tokens: Float[Tensor, "*problems n tokens dim"],
    query: Float[Tensor, "*problems n dim"],
    head: Float[Tensor, "*problems dim"],
    y: Float[Tensor, "*problems n"],
    *,
    factored: bool = False,
    lr: float = 0.1,
    steps: int = 1000,
    kept: int = 20,
    seed: int = 0,
) -> Descent:
    """Gradient descent with steps of length `lr` on W, from 0, or with `factored` on K and Q, W = K Q^T, from
    entries N(0, 0.01 / dim). Normalised steps, because plain ones approach the direction like 1 / log t."""
    *problems, _, _, dim = tokens.shape
    if factored:
        g = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, *problems, dim, dim, generator=g, dtype=torch.float64)
        k, q = (0.1 * dim**-0.5 * drawn).to(tokens)
    w = k @ q.mT if factored else tokens.new_zeros(*problems, dim, dim)
    every = max(1, steps // kept)
    directions = []
    for step in range(1, steps + 1):
        grad = attention_gradient(tokens, query, head, y, w)
        if factored:
            dk, dq = grad @ q, grad.mT @ k
            size = (_size(dk).square() + _size(dq).square()).sqrt().clamp(min=torch.finfo(tokens.dtype).tiny)
            k, q = k - lr * dk / size, q - lr * dq / size
            w = k @ q.mT
        else:
            w = w - lr * grad / _size(grad).clamp(min=torch.finfo(tokens.dtype).tiny)
        if (steps - step) % every == 0:
            directions.append(w / _size(w).clamp(min=torch.finfo(tokens.dtype).tiny))
    return Descent(w, torch.stack(directions))


def token_margins(
    tokens: Float[Tensor, "*problems n tokens dim"],
    query: Float[Tensor, "*problems n dim"],
    chosen: Int[Tensor, "*problems n"],
    weight: Float[Tensor, "*problems dim dim"],
) -> Float[Tensor, "*problems n tokens"]:
    """(x_chosen - x_t)^T W z of every token t; 0 of the chosen one."""
    scores = (tokens @ (weight @ query.mT).mT[..., None])[..., 0]
    return scores.gather(-1, chosen[..., None]) - scores


def direction_gap(
    a: Float[Tensor, "*batch dim dim"], b: Float[Tensor, "*batch dim dim"]
) -> Float[Tensor, "*batch"]:
    """1 - cosine of two matrices."""
    return 1 - F.cosine_similarity(a.flatten(-2), b.flatten(-2), dim=-1)


def attention_svm(
    tokens: Float[Tensor, "n tokens dim"],
    query: Float[Tensor, "n dim"],
    chosen: Int[Tensor, " n"],
    norm: Norm = "fro",
    iterations: int = 2000,
) -> Float[Tensor, "dim dim"]:
    """The W of least norm with (x_chosen - x_t)^T W z >= 1 for every input and other token.

    "fro": the Frobenius norm, to which gradient descent on W goes; solved exactly, by non-negative least
    squares (Lawson and Hanson's least distance programming). "nuc": the nuclear norm, to which descent on K
    and Q goes; by the alternating direction method of multipliers, whose margins are exact and whose norm is
    within about 1e-4 of the least. Tokens equal to the chosen one are not separated. Float64.

    Raises ValueError where no W separates the chosen tokens.
    """
    if norm not in ("fro", "nuc"):
        raise ValueError(f"norm must be 'fro' or 'nuc', got {norm!r}.")
    x, z = tokens.detach().double(), query.detach().double()
    apart = x.gather(1, chosen[:, None, None].expand(-1, 1, x.shape[2])) - x
    rows = (apart[..., :, None] * z[:, None, None, :]).flatten(0, 1).flatten(1).cpu().numpy()
    rows = rows[np.abs(rows).max(axis=1) > 0]
    dim = x.shape[2]
    w = _nearest(rows, np.zeros(dim * dim))
    if norm == "nuc":
        split, dual = w, np.zeros_like(w)
        step = np.linalg.norm(w.reshape(dim, dim), 2) / 10
        for _ in range(iterations):
            left, size, right = np.linalg.svd((split - dual).reshape(dim, dim))
            low = ((left * np.maximum(size - step, 0)) @ right).ravel()
            split = _nearest(rows, low + dual)
            dual += low - split
        w = split
    return torch.from_numpy(w.reshape(dim, dim)).to(tokens.device)


@part(
    "attention_svm",
    "theory",
    title="Transformers as Support Vector Machines",
    paper="arXiv:2308.16898",
    number=35,
    aliases=("att_svm",),
    tasks=("binary", "sequence"),
    search_space={"factored": Choice(False, True)},
)
class AttentionSVM(Fitted):
    """One attention layer under a fixed head, trained by normalised gradient descent, and the support vector
    machine that its weights approach: which token each input comes to attend to, and how sharply.

    Equation: f = v^T X^T softmax(X W z), the loss mean_i log(1 + exp(-y_i f_i)). As |W| grows, W / |W| goes
    the solution of min |W|_F with (x_opt - x_t)^T W z >= 1 for all t != opt, opt the token of the highest y
    v^T x_t; with W = K Q^T and steps on K and Q, to that of the least nuclear norm. From a bad start other
    tokens can win, and the limit is theirs.

    Shapes: `fit(x, y)` takes x (rows, 1 + tokens, dim), the query z first, and y (rows,) of -1 and 1;
    `predict(x)` gives f (rows,). `weight` is W (dim, dim), `head` v, `selected` the token that each training
    row attends to most, `optimal` that of the highest score.

    Defaults: 1,000 steps of length 0.1 on W from 0; v is drawn N(0, 1 / dim) under `seed`, or given to `fit`.

    Raises: ValueError for rows of another shape or dtype, labels other than -1 and 1, fewer than 2 tokens,
    settings that are not positive, an empty batch or NaN.

    Source: Tarzanagh, Li, Thrampoulidis, Oymak, arXiv:2308.16898, (W-SVM), (KQ-SVM) and theorem 1.

    Not for: training a layer for use, which goes on until its softmax is one-hot.
    """

    def __init__(self, factored: bool = False, lr: float = 0.1, steps: int = 1000, seed: int = 0) -> None:
        super().__init__()
        check_positive(lr=lr, steps=steps)
        self.factored, self.lr, self.steps, self.seed = factored, lr, steps, seed
        self.weight: Tensor
        self.head: Tensor
        self.selected: Tensor
        self.optimal: Tensor
        for name in ("weight", "head"):
            self.register_buffer(name, torch.zeros(0))
        for name in ("selected", "optimal"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))

    def fit(
        self,
        x: Float[Tensor, "rows tokens dim"],
        y: Float[Tensor, " rows"],
        head: Float[Tensor, " dim"] | None = None,
    ) -> AttentionSVM:
        """Train W; returns self."""
        _check(x)
        if y.shape != x.shape[:1] or not bool(((y == 1) | (y == -1)).all()):
            raise ValueError(f"y must be {len(x)} numbers of -1 and 1, got shape {tuple(y.shape)}.")
        dim = x.shape[2]
        if head is None:
            g = torch.Generator().manual_seed(self.seed)
            head = dim**-0.5 * torch.randn(dim, generator=g, dtype=torch.float64)
        self.head = head.to(x)
        tokens, query, y = x.detach()[:, 1:], x.detach()[:, 0], y.to(x)
        self.weight = attention_descent(
            tokens, query, self.head, y, factored=self.factored, lr=self.lr, steps=self.steps, kept=1,
            seed=self.seed,
        ).weight  # fmt: skip
        self.selected = _attended(tokens, query, self.head, self.weight)[0].argmax(-1)
        self.optimal = (y[:, None] * (tokens @ self.head)).argmax(-1)
        return self

    def predict(self, x: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, " rows"]:
        """f of each row."""
        _check(x)
        if x.shape[2] != len(self.head):
            raise ValueError(
                f"x must have {len(self.head)} numbers per token, as `fit` saw, got {x.shape[2]}."
            )
        return attention_output(x[:, 1:], x[:, 0], self.head.to(x.dtype), self.weight.to(x.dtype))


def _attended(tokens: Tensor, query: Tensor, head: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The attention weights s and what each token would give, u = X v, both (*problems, n, tokens)."""
    scores = (tokens @ (query @ weight.mT)[..., None])[..., 0]
    return scores.softmax(-1), (tokens @ head[..., None, :, None])[..., 0]


def _size(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x, keepdim=True)


def _nearest(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The point nearest to `point` whose products with all rows are at least 1."""
    bound = 1 - rows @ point
    if (bound <= 0).all():
        return point
    system = np.vstack([rows.T, bound])
    goal = np.zeros(len(system))
    goal[-1] = 1
    residual = system @ nnls(system, goal)[0] - goal
    if np.linalg.norm(residual) < 1e-9:
        raise ValueError(
            f"no weights separate the chosen tokens: {len(rows)} constraints contradict each other."
        )
    return point - residual[:-1] / residual[-1]


def _check(x: Tensor) -> None:
    if x.ndim != 3 or x.shape[1] < 3 or 0 in x.shape:
        raise ValueError(
            f"x must have shape (rows, tokens, dim) with a query and at least 2 tokens, got {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}.")
    check_numbers(x, "x")
