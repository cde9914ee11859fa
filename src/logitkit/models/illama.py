"""iLLaMA: the decoder of LLaMA as a backbone for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import SoftmaxAttention
from logitkit.models.base import Backbone, check_images, check_inputs, patches_of
from logitkit.registry import Choice, Real, Whole, part


def linear_mask_schedule(total: int, cutoff: int) -> Float[Tensor, " total"]:
    """The softness of the mask at each of `total` steps: from 1 to 0 over the first `cutoff`, then 0."""
    if not 0 <= cutoff <= total:
        raise ValueError(f"cutoff must lie in [0, total], got {cutoff} of {total} steps.")
    return F.pad(torch.linspace(1, 0, cutoff) if cutoff > 1 else torch.ones(cutoff), (0, total - cutoff))


class SoftCausalMask(nn.Module):
    """M = r + (1 - r) tril, which goes from no mask to the causal one while a network trains.

    steps: over how many calls in training r falls from 1 to 0. It is 0 in evaluation. `update(step)` sets the
    call that comes next.
    """

    step: Tensor

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}.")
        self.steps = steps
        self.register_buffer("step", torch.tensor(0))

    def update(self, step: int) -> None:
        """Continue at the given step."""
        self.step.fill_(step)

    def rate(self) -> Float[Tensor, ""]:
        """How soft the mask is now."""
        if not self.training or self.steps == 0:
            return torch.zeros((), device=self.step.device)
        return (1 - self.step / max(self.steps - 1, 1)).clamp(min=0)

    def forward(self, tokens: int) -> Float[Tensor, "tokens tokens"]:
        causal = torch.ones(tokens, tokens, device=self.step.device).tril()
        rate = self.rate()
        if self.training:
            self.step += 1
        return rate + (1 - rate) * causal


class SoftCausalAttention(SoftmaxAttention):
    """Softmax attention under a mask M in [0, 1], given as `attn_mask = log M`.

    mode: "post" multiplies the weights by M after the softmax, as the authors do: rows sum to less than 1,
    and their sums depend on all tokens. "logit" adds log M to the scores: rows sum to 1 over what they see.
    """

    takes = frozenset({"mask", "weights"})

    def __init__(self, embed_dim: int, num_heads: int, mode: str = "post") -> None:
        super().__init__(embed_dim, num_heads, rope=True)
        if mode not in ("post", "logit"):
            raise ValueError(f"mask_mode must be 'post' or 'logit', got {mode!r}.")
        self.mode = mode

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        if self.mode == "logit" or mask is None:
            return super().attend(query, key, value, mask, causal)
        weights = (query @ key.mT / math.sqrt(self.head_dim)).softmax(-1)
        return (weights * mask.exp()).to(value.dtype) @ value


class SwiGLU(nn.Module):
    """W_2 (silu(W_1 x) * W_3 x), without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, value = self.both(x).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, dim: int, heads: int, mask_mode: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.attention = SoftCausalAttention(dim, heads, mask_mode)
        self.mlp = SwiGLU(dim, 8 * dim // 3)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Float[Tensor, "tokens tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x), attn_mask=mask)[0]
        return x + self.mlp(self.norm2(x))


@part(
    "illama",
    "models",
    title="Adapting LLaMA Decoder to Vision Transformer",
    paper="arXiv:2404.06773",
    number=147,
    tasks=("classification", "binary", "regression", "multilabel"),
    search_space={"depth": Whole(2, 6), "dim": Choice(32, 64, 96), "dropout": Real(0.0, 0.2)},
)
class ILLaMA(Backbone):
    """iLLaMA: a vision transformer of LLaMA's parts with causal attention, for one architecture that reads
    images and text.

    Equation: z_0 = (patches(x) E, class token) + P; z <- z + A(RMSNorm z), z <- z + SwiGLU(RMSNorm z); the
    features are the last token of RMSNorm z. A = (softmax(Q K^T / sqrt(d)) * M) V W, with Q and K turned by
    their positions and M = r + (1 - r) tril, r falling from 1 to 0 over the first `soft_steps` calls in
    training, 0 in evaluation.

    Shapes: x (batch, channels, height, width) -> feature map (batch, tokens + 1, dim), pooled to (batch,
    dim), unitless.

    Defaults: depth 4, dim 64, 4 heads, patches as `vit`; the feed-forward part is 8/3 wide. soft_steps = 200
    is for trainings of a thousand steps or so; the paper softens the mask for 25 epochs of 300. The class
    token comes last, since a first one sees nothing else (cls="first"). M multiplies what the softmax over
    all tokens gives: rows sum to less than 1, and how much less still tells of later tokens. With
    mask_mode="logit", a softmax over what is seen, nothing does.

    Raises: ValueError for an `input_shape` that is not (channels, height, width), a `dim` that `heads` does
    not divide evenly, a depth below 1, another mask_mode or cls, an input of another shape or dtype, an empty
    batch or NaN.

    Source: Wang et al., arXiv:2404.06773, section 3; the authors' illama.py.

    Not for: images alone, for which nothing is gained by causality.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        depth: int = 4,
        dim: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        patch: int | None = None,
        soft_steps: int = 200,
        mask_mode: str = "post",
        cls: str = "last",
    ) -> None:
        super().__init__(input_shape)
        channels, height, width = check_images(self.input_shape, "illama")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if cls not in ("last", "first"):
            raise ValueError(f"cls must be 'last' or 'first', got {cls!r}.")
        patch, grid = patches_of(height, width, patch)
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(dim))
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1] + 1, dim))
        self.dropout = nn.Dropout(dropout)
        self.mask = SoftCausalMask(soft_steps)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads, mask_mode) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.out_features, self.last = dim, cls == "last"

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        patches = self.patches(F.pad(check_inputs(x, self.input_shape), self.padding)).flatten(2).mT
        token = self.class_token.to(patches.dtype).expand(len(x), 1, -1)
        tokens = torch.cat([patches, token] if self.last else [token, patches], 1)
        tokens = self.dropout(tokens + self.position)
        mask = self.mask(tokens.shape[1]).log().to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.norm(tokens)

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map[:, -1] if self.last else map[:, 0]
