"""Attention for images that does not see all pairs of tokens; float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.attention import (
    CrossShapedAttention,
    SoftmaxAttention,
    inline_attention,
    rank_augmented_attention,
    softmax_free_attention,
)
from logitkit.attention.soft import gaussian
from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.models import AxialImageLM, Transformer

PEERS = ()
NOTE = """\
SDPA is torch's scaled_dot_product_attention. Local terms and projections are left out of the functions; the
cross-shaped windows are the whole layer, with LePE, against the layer with SDPA. With one thread the goals
are reached, the image model's narrowly, at 0.47: of its time two thirds are projections, feed-forward parts
and norms, which both models have, and lines along columns are copied where those along rows are not."""

HEADS, DIM = 4, 32


def _functions(n: int, small: bool) -> Arms:
    n = 256 if small else n
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM, generator=g) for _ in range(3))
    few = q[:, :, :: n // 64]
    arms: dict[str, Callable[[], Tensor]] = {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v),
        "InLine": lambda: inline_attention(q, k, v),
        "RALA": lambda: rank_augmented_attention(q, k, v),
        "SOFT": lambda: softmax_free_attention(q, few, v),
        "dense Gaussian": lambda: gaussian(q, q) @ v,
    }
    return Arms({name: _forward(make) for name, make in arms.items()})


def _lengths(small: bool) -> Arms:
    def arm(n: int) -> Arm:
        g = torch.Generator().manual_seed(0)
        q, v = (torch.randn(1, HEADS, n, DIM, generator=g) for _ in range(2))
        few = q[:, :, :: n // 64]
        return _forward(lambda: softmax_free_attention(q, few, v))

    return Arms({f"SOFT, {n} tokens": arm(n // 8 if small else n) for n in (2048, 8192)})


def _layers(small: bool) -> Arms:
    side = 8 if small else 64
    torch.manual_seed(0)
    x = torch.randn(1, side**2, HEADS * DIM)
    layers: dict[str, nn.Module] = {
        "cross-shaped": CrossShapedAttention(HEADS * DIM, HEADS, grid=(side, side)),
        "all pairs": SoftmaxAttention(HEADS * DIM, HEADS),
    }
    return Arms({name: _forward(partial(layer, x)) for name, layer in layers.items()})


def _image_models(small: bool) -> Arms:
    side, levels = (4 if small else 32), 4
    torch.manual_seed(0)
    x = torch.randint(levels, (4, 1, side, side))
    axial = AxialImageLM((side, side), levels, outer=2, inner=2)
    full, head = Transformer((side**2,), levels, depth=4), nn.Linear(64, levels)

    def both(logits: Callable[[], Tensor]) -> Arm:
        return lambda: F.cross_entropy(logits().flatten(0, -2), x.flatten()).backward()

    return Arms(
        {
            "axial": both(lambda: axial(x)),
            "causal over all pixels": both(lambda: head(full.forward_features(x.flatten(1)))),
        }
    )


def _forward(make: Callable[[], object]) -> Arm:
    def run() -> None:
        with torch.no_grad():
            make()

    return run


def cases() -> list[Case]:
    return [
        Case(
            "4,096 tokens, 4 heads of 32, 64 landmarks, forward",
            partial(_functions, 4096),
            [
                Goal("InLine", 1 / 5, "SDPA"),
                Goal("RALA", 1 / 4, "SDPA"),
                Goal("SOFT", 1 / 8, "dense Gaussian"),
            ],
        ),
        Case(
            "4 times as many tokens, 64 landmarks, forward",
            _lengths,
            [Goal("SOFT, 8192 tokens", 6, "SOFT, 2048 tokens")],
        ),
        Case(
            "64x64 tokens, a layer of 4 heads of 32, stripes of 1, forward",
            _layers,
            [Goal("cross-shaped", 1 / 4, "all pairs")],
        ),
        Case(
            "models of 32x32 pixels, 4 blocks of 64, forward and backward",
            _image_models,
            [Goal("axial", 1 / 2, "causal over all pixels")],
        ),
    ]
