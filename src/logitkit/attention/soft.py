"""Softmax-free attention: a Gaussian kernel of queries, through landmarks in time linear in the tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention.base import MultiheadAttention
from logitkit.ops.grid import depthwise, grid_of
from logitkit.registry import Choice, part

NORMS = (None, "landmark", "full")


def newton_pinv(
    matrix: Float[Tensor, "*batch m m"], iters: int = 20, ridge: float = 0.01
) -> Float[Tensor, "*batch m m"]:
    """(matrix + ridge I)^-1 of symmetric matrices of numbers that are not negative, by Newton's iteration
    Z <- 2 Z - Z A Z from a multiple of A.

    The gradient is that of the exact inverse: -Z^T G Z^T.
    """
    with torch.no_grad():
        start = 1.8 / matrix.sum(-1).amax(-1).square()
        a = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        z = _newton(a, start, iters)
    return z - z @ (matrix - matrix.detach()) @ z


def softmax_free_attention(
    query: Float[Tensor, "*batch tokens dim"],
    landmarks: Float[Tensor, "*batch m dim"],
    value: Float[Tensor, "*batch tokens out"],
    *,
    iters: int = 20,
    ridge: float = 0.01,
    norm: str | None = None,
) -> Float[Tensor, "*batch tokens out"]:
    """P A^+ P^T V, P = k(Q, L), A = k(L, L), k(a, b) = exp(-|a - b|^2 / 2); see `SoftmaxFreeAttention`."""
    p, a = gaussian(query, landmarks), gaussian(landmarks, landmarks)
    if norm == "landmark":
        d = a.sum(-1, keepdim=True).rsqrt()
        inverse = d * _newton_from_halved(a, iters) * d.mT
    else:
        inverse = newton_pinv(a, iters, ridge)
    if norm != "full":
        return p @ (inverse @ (p.mT @ value))
    rows = p @ (inverse @ p.sum(-2, keepdim=True).mT)
    d = rows.clamp(min=torch.finfo(rows.dtype).eps).rsqrt()
    return d * (p @ (inverse @ (p.mT @ (d * value))))


def gaussian(
    a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
) -> Float[Tensor, "*batch n m"]:
    """exp(-|a_i - b_j|^2 / 2)."""
    squares = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return (-squares.clamp(min=0) / 2).exp()


@part(
    "soft",
    "attention",
    title="Softmax-free Linear Transformers",
    paper="arXiv:2207.03341",
    number=15,
    tasks=("classification",),
    search_space={"norm": Choice(*NORMS)},
)
class SoftmaxFreeAttention(MultiheadAttention):
    """Softmax-free attention (SOFT): a Gaussian kernel in the place of the softmax, in time that grows with
    the tokens; for images of many tokens.

    Equation: out = S V + D(V), S = P A^+ P^T, P = k(Q, L), A = k(L, L), k(a, b) = exp(-|a - b|^2 / 2), Q =
    X W_q / d^(1/4), which are the keys too. The landmarks are L = gelu(LN(conv(Q))), one for each square of
    `ratio` x `ratio` tokens; D is a 3x3 depthwise convolution with one kernel for each head. A^+ is Newton's
    inverse of A + 0.01 I. norm="full" takes C^(-1/2) S C^(-1/2), C the sums of rows of S; norm="landmark"
    does so to A^+ with those of A, without the 0.01.

    Shapes: tokens (batch, tokens, embed_dim) of a grid in reading order -> same.

    Defaults: ratio = 2 where it divides the grid, or else 1; no normalisation; 20 iterations. With ratio 1
    S = k(L, L), as in the authors' code, which needs no inverse. Without `grid` (height, width) the tokens
    are a square.

    Raises: ValueError for sizes that do not fit, a ratio that does not divide the grid, another norm, other
    dtypes than floats, an empty batch or NaN.

    Source: Lu et al., arXiv:2207.03341, sections 3 and 4; the authors' softmax_free_transformer.py for the
    landmarks, the ridge, the convolution and norm="landmark", whose start is one for the whole batch there.

    Not for: sequences read from left to right; class tokens among those of the grid.
    """

    takes = frozenset()

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        grid: tuple[int, int] | None = None,
        ratio: int | None = None,
        conv_size: int = 3,
        iters: int = 20,
        ridge: float = 0.01,
        norm: str | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if ratio is None:
            ratio = 2 if grid is not None and grid[0] % 2 == grid[1] % 2 == 0 else 1
        if ratio < 1 or (grid is not None and (grid[0] % ratio or grid[1] % ratio)):
            raise ValueError(f"ratio must divide the sides of the grid, got {ratio} and {grid}.")
        if norm not in NORMS:
            raise ValueError(f"norm must be None, 'landmark' or 'full', got {norm!r}.")
        if conv_size < 1 or conv_size % 2 == 0:
            raise ValueError(f"conv_size must be an odd size of at least 1, got {conv_size}.")
        self.grid, self.ratio, self.iters, self.ridge, self.norm = grid, ratio, iters, ridge, norm
        self.in_proj = nn.Linear(embed_dim, 2 * embed_dim, bias=bias)
        self.squares = nn.Conv2d(self.head_dim, self.head_dim, ratio, stride=ratio, bias=False)
        self.landmark_norm = nn.LayerNorm(self.head_dim)
        self.conv = nn.Conv2d(num_heads, num_heads, conv_size, groups=num_heads, bias=False)

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, which are the keys too, and values."""
        both = self.in_proj(query).unflatten(-1, (2 * self.num_heads, -1)).transpose(1, 2)
        q, v = both.chunk(2, 1)
        q = q / self.head_dim**0.25
        return q, q, v

    def landmarks(self, query: Float[Tensor, "batch heads tokens dim"]) -> Float[Tensor, "batch heads m dim"]:
        """One for each square of tokens."""
        grid = grid_of(query.shape[-2], self.grid)
        if grid[0] % self.ratio or grid[1] % self.ratio:
            raise ValueError(f"a ratio of {self.ratio} does not divide a grid of {grid[0]}x{grid[1]}.")
        pooled = self.squares(query.flatten(0, 1).mT.unflatten(-1, grid)).flatten(2).mT
        return F.gelu(self.landmark_norm(pooled)).unflatten(0, query.shape[:2])

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        landmarks = self.landmarks(query)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        with torch.autocast(query.device.type, enabled=False):
            q, few, v = (x.to(wide) for x in (query, landmarks, value))
            if self.ratio > 1:
                mixed = softmax_free_attention(q, few, v, iters=self.iters, ridge=self.ridge, norm=self.norm)
            else:
                s = gaussian(few, few)
                d = torch.ones_like(s[..., :1]) if self.norm is None else s.sum(-1, keepdim=True).rsqrt()
                mixed = d * (s @ (d * v))
        return mixed.to(value.dtype)

    def finish(self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out, value = (x.transpose(1, 2).flatten(2) for x in (mixed, value))
        grid = grid_of(out.shape[1], self.grid)
        kernels = self.conv.weight[:, 0].repeat_interleave(self.head_dim, 0)
        return self.out_proj(out + depthwise(value.unflatten(1, grid), kernels).flatten(1, 2))


def _newton(a: Tensor, start: Tensor, iters: int) -> Tensor:
    z = start[..., None, None] * a
    for _ in range(iters):
        z = 2 * z - z @ a @ z
    return z


def _newton_from_halved(matrix: Tensor, iters: int) -> Tensor:
    """Newton's inverse without a ridge, from a start that is halved until it is no further from the inverse
    than zero is."""
    with torch.no_grad():
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        start, square = 2 / matrix.sum(-1).amax(-1).square(), matrix @ matrix
        for _ in range(10):
            far = (eye - start[..., None, None] * square).abs().sum(-2).amax(-1) > 1.01
            start = torch.where(far, start / 2, start)
        z = _newton(matrix, start, iters)
    return z - z @ (matrix - matrix.detach()) @ z
