"""Modern Hopfield networks: attention as the retrieval of stored patterns, once or until the state stays."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from logitkit.attention.base import MultiheadAttention, weighted
from logitkit.ops import attention, logsumexp
from logitkit.registry import Choice, Real, Whole, part


def hopfield_attention(
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch kv_heads keys dim"],
    value: Float[Tensor, "*batch kv_heads keys out"],
    attn_mask: Bool[Tensor, "*any queries keys"] | Float[Tensor, "*any queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_offset: int = 0,
    steps: int = 0,
    eps: float = 1e-4,
) -> Float[Tensor, "*batch heads queries out"]:
    """softmax(beta S K^T + mask) V, S what `steps` updates S <- softmax(beta S K^T + mask) K make of Q; beta
    is `scale`. See `Hopfield`. A state stays once an update has moved it by at most eps."""
    if steps < 0 or not eps > 0:
        raise ValueError(f"steps must not be negative and eps be positive, got {steps} and {eps}.")
    state, moving = query, torch.ones_like(query[..., :1], dtype=torch.bool)
    for _ in range(steps):
        new = attention(
            state, key, key, attn_mask=attn_mask, is_causal=is_causal, causal_offset=causal_offset,
            scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
        moved = (new - state).norm(dim=-1, keepdim=True) > eps
        state, moving = torch.where(moving, new, state), moving & moved
        if not torch.compiler.is_compiling() and not moving.any():
            break
    return weighted(
        "softmax", state, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, causal_offset
    )


def hopfield_energy(
    state: Float[Tensor, "*batch dim"], stored: Float[Tensor, "patterns dim"], beta: float
) -> Float[Tensor, " *batch"]:
    """E(s) = -log(sum_i exp(beta x_i . s)) / beta + s . s / 2 + log(N) / beta + M^2 / 2, M the largest |x_i|.

    It lies between 0 and 2 M^2 for states no longer than M, and is never higher after an update.
    """
    _check_beta(beta)
    n, largest = len(stored), stored.square().sum(-1).max()
    scores = logsumexp(beta * state @ stored.T, -1)
    return (torch.tensor(float(n)).log().to(state) - scores) / beta + (state.square().sum(-1) + largest) / 2


def hopfield_update(
    state: Float[Tensor, "*batch dim"], stored: Float[Tensor, "patterns dim"], beta: float
) -> Float[Tensor, "*batch dim"]:
    """X^T softmax(beta X s): one update of the states."""
    _check_beta(beta)
    return (beta * state @ stored.T).softmax(-1) @ stored


def classify_fixed_point(
    state: Float[Tensor, "states dim"], stored: Float[Tensor, "patterns dim"], beta: float, mass: float = 0.9
) -> list[str]:
    """Whether each state is one pattern, "single", a mixture of some, "metastable", or of at least half of
    them, "global", by how many of the largest weights it takes to reach `mass`."""
    _check_beta(beta)
    weights = (beta * state @ stored.T).softmax(-1).sort(-1, descending=True).values
    counts = (weights.cumsum(-1) < mass).sum(-1) + 1
    return [
        "single" if k == 1 else "global" if 2 * k >= len(stored) else "metastable" for k in counts.tolist()
    ]


@part(
    "hopfield",
    "attention",
    title="Hopfield Networks is All You Need",
    paper="arXiv:2008.02217",
    number=176,
    tasks=("sequence", "classification"),
    search_space={"beta": Real(0.05, 4.0, log=True), "steps": Whole(0, 3), "normalize": Choice(True, False)},
)
class Hopfield(MultiheadAttention):
    """Modern Hopfield network: attention whose states may settle before they are read; `HopfieldLayer` stores
    patterns, `HopfieldPooling` pools sets.

    Equation: Z = softmax(beta S K^T) V, K = Y W_K, V = Y W_V, S = R W_Q after `steps` updates S <-
    softmax(beta S K^T) K. Each update lowers the energy of `hopfield_energy`; a state stays once it has moved
    by at most eps. A small beta settles in the mean of all patterns, a large one in a single pattern.

    Shapes: state patterns R (batch, queries, embed_dim), stored patterns Y (batch, keys, embed_dim) and what
    to read of them -> (batch, queries, embed_dim), and the weights (batch, queries, keys) or None.

    Defaults: the authors': beta = 1/sqrt(d), no updates, eps = 1e-4, a LayerNorm for each of the inputs.
    normalize=False leaves these out, and with steps = 0 is nn.MultiheadAttention. The authors' states of a
    head stop together, when the weights of the whole batch change little; here each by itself, so that no
    example depends on others.

    Raises: ValueError for sizes that do not fit, a beta that is not positive, negative steps, other dtypes
    than floats, an empty batch or NaN.

    Source: Ramsauer et al., ICLR 2021, arXiv:2008.02217, sections 2 and 3; the authors' hflayers.

    Not for: more than a few updates where time matters; each costs as much as the attention itself.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        beta: float | None = None,
        steps: int = 0,
        eps: float = 1e-4,
        normalize: bool = True,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias)
        if beta is not None:
            _check_beta(beta)
        if steps < 0 or not eps > 0:
            raise ValueError(f"steps must not be negative and eps be positive, got {steps} and {eps}.")
        self.beta, self.steps, self.eps = beta, steps, eps
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(3 if normalize else 0))

    def project(
        self, query: Tensor, key: Tensor, value: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.norms:
            query, key, value = (norm(x) for norm, x in zip(self.norms, (query, key, value), strict=True))
        return super().project(query, key, value, start)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return hopfield_attention(
            query, key, value, mask, is_causal=causal is not None, scale=self.beta, enable_gqa=True,
            causal_offset=causal or 0, steps=self.steps, eps=self.eps,
        )  # fmt: skip


class HopfieldPooling(nn.Module):
    """A set as what `quantity` learned states retrieve of it.

    Shapes: x (batch, patterns, dim), key_padding_mask (batch, patterns) True for padding -> (batch, quantity
    * dim). Settings as `Hopfield`; states start normal with deviation 0.02, as the authors'.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        quantity: int = 1,
        *,
        dropout: float = 0.0,
        beta: float | None = None,
        steps: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if quantity < 1:
            raise ValueError(f"quantity must be at least 1, got {quantity}.")
        self.hopfield = Hopfield(dim, heads, dropout, beta=beta, steps=steps, normalize=normalize)
        self.states = nn.Parameter(0.02 * torch.randn(quantity, dim))

    def forward(
        self,
        x: Float[Tensor, "batch patterns dim"],
        key_padding_mask: Bool[Tensor, "batch patterns"] | None = None,
    ) -> Float[Tensor, "batch features"]:
        states = self.states.to(x.dtype).expand(len(x), -1, -1)
        return self.hopfield(states, x, x, key_padding_mask)[0].flatten(1)


class HopfieldLayer(nn.Module):
    """What each token retrieves of `memory` learned patterns with learned values: a table to look up.

    Shapes: x (batch, tokens, dim) -> same. Settings as `Hopfield`; patterns start normal with deviation 0.02,
    as the authors'.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        memory: int = 64,
        *,
        dropout: float = 0.0,
        beta: float | None = None,
        steps: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if memory < 1:
            raise ValueError(f"memory must be at least 1, got {memory}.")
        self.hopfield = Hopfield(dim, heads, dropout, beta=beta, steps=steps, normalize=normalize)
        self.stored, self.read = (nn.Parameter(0.02 * torch.randn(memory, dim)) for _ in range(2))

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        stored, read = (p.to(x.dtype).expand(len(x), -1, -1) for p in (self.stored, self.read))
        return self.hopfield(x, stored, read)[0]


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}.")
