"""Activator: a gated unit on every token where a transformer has attention."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.registry import Choice, part


@part(
    "activator",
    "layers",
    title="Activator: GLU Activations as The Core Functions of a Vision Transformer",
    paper="arXiv:2405.15953",
    number=151,
    replaces="mixer",
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"shared_norm": Choice(True, False)},
)
class GatingUnit(nn.Module):
    """A gated linear unit in the place of attention: a control for how much of a task needs tokens to see
    each other, at a fraction of the time. No token sees another.

    Equation: y = W_3 (u v) + c_3, u = LN(gelu(W_1 x + c_1)), v = LN(W_2 x + c_2), with one LN for both.

    Shapes: x (..., dim) -> same, unitless.

    Defaults: hidden = 2 dim as in the authors' CIFAR-10 network, and their sharing of the normalisation;
    `shared_norm=False` gives each product its own.

    Raises: ValueError for sizes below 1, inputs of another width or dtype, or none.

    Source: Abdullah Nazhat Abdullah and Tarkan Aydin, 2024, arXiv:2405.15953; the authors' `activator.py`.

    Not for: anything that depends on where parts of an image are relative to each other.
    """

    def __init__(self, dim: int, hidden: int | None = None, shared_norm: bool = True) -> None:
        super().__init__()
        hidden = 2 * dim if hidden is None else hidden
        check_whole(dim=dim, hidden=hidden)
        self.dim = dim
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.fc3 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = self.norm1 if shared_norm else nn.LayerNorm(hidden)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        x = check_tokens(x, self.dim)
        return self.fc3(self.norm1(F.gelu(self.fc1(x))) * self.norm2(self.fc2(x)))


class ActivatorBlock(nn.Module):
    """x + unit(LN(x)), then x + W_2 gelu(W_1 LN(x)) with dropout after each product, and with the same LN;
    without `ffn` the second part is left out.

    Shapes: x (..., dim) -> same, unitless.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        dropout: float = 0.0,
        ffn: bool = True,
        shared_norm: bool = True,
    ) -> None:
        super().__init__()
        self.unit = GatingUnit(dim, hidden, shared_norm)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = self.norm1 if shared_norm else nn.LayerNorm(dim)
        self.ffn = None
        if ffn:
            inner = nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout)
            self.ffn = nn.Sequential(*inner, nn.Linear(hidden, dim), nn.Dropout(dropout))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        x = x + self.unit(self.norm1(x))
        return x if self.ffn is None else x + self.ffn(self.norm2(x))
