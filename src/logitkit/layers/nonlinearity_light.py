"""A transformer's block without normalisation and activation, for models that run on encrypted inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.layers.base import check_tokens, check_whole
from logitkit.registry import part


@part(
    "nonlinearity_light",
    "layers",
    title="Entropy-Guided Attention for Private LLMs",
    paper="arXiv:2501.03489",
    number=50,
    companion_of="entropy_guided",
    replaces="norm+mlp",
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
)
class NonlinearityLight(nn.Module):
    """Norm and feed-forward part of a block for encrypted inputs, where nonlinearities are what costs: no
    norm at all, and two linear maps times a learned number. What stays nonlinear is the attention.

    Equation: a (W_2 (W_1 x + b_1) + b_2) in the place of the mlp; x in the place of the norm, where no
    `hidden` is given. A block is then x + attention(x), and of that x + a FFN(x).

    Shapes: x (..., dim) -> same, unitless.

    Defaults: a = 1, W and b as in `nn.Linear`.

    Raises: ValueError for sizes below 1, inputs of another width or dtype, or none.

    Source: Jha, Reagen, 2025, arXiv:2501.03489. With `attention=entropy_guided(lam=1e-5)`, whose penalty
    keeps heads from looking at all keys alike.

    Not for: deep models at a usual step size: nothing holds the size of what blocks add up.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        check_whole(dim=dim, hidden=dim if hidden is None else hidden)
        self.dim = dim
        self.layers: nn.Sequential | None = None
        if hidden is not None:
            self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.Linear(hidden, dim))
            self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        x = check_tokens(x, self.dim)
        return x if self.layers is None else self.scale * self.layers(x)
