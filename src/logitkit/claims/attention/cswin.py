"""224: cross-shaped windows relate far tokens in one row or column, where square windows of equal cost do
not; LePE tells where tokens are.

Set beforehand: 16x16 grids with two marks at least 8 apart, in one row, one column or neither (`marks`); two
layers, stripes of 1 against windows of 4x4, each query seeing 16 keys; digits with and without LePE; seeds
0-2; all thresholds.
Left open, and chosen before the first run:
- 3,000 grids; a vision transformer of dim 32 with 4 heads and one token per pixel, learned positions and LePE
  in both arms; AdamW at 3e-3 with the cosine schedule, batches of 32, 10 epochs.
- On digits, one stage of two blocks with stripes of 1 on one token per pixel, dim 32, 4 heads, and no other
  positions; trained as `TINY_VIT`, but on batches of 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from logitkit import data
from logitkit.attention import CrossShapedAttention, window_attention, window_lepe
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.claims.fixtures import accuracies, digits_accuracy
from logitkit.models import CSWin, ViT
from logitkit.ops.grid import grid_of

WINDOW = (4, 4)


@claim(
    "attention",
    "cswin",
    statement="Two layers of cross-shaped windows tell marks in one row, one column or neither to 95 %, 10"
    " points better than windows of equal cost; on digits LePE is worth 3 points over no positions.",
    seeds=range(3),
)
def cswin(trial: Trial) -> list[Check]:
    source = data.load(f"marks:n={trial.few(3000, 300)}")

    settings = {"batch_size": 32, "lr": 3e-3, "warmup": 0.1, "epochs": 10}
    cross, square = (accuracies(trial, source, model=model, **settings) for model in (CrossViT, WindowViT))
    return [
        over_seeds("test accuracy on marks, percent: cross-shaped windows", cross, ">=", 95,
                   {"cross": cross}),
        difference("test accuracy on marks, points: cross-shaped minus square windows", ">=", 10,
                   cross=cross, square=square),
        difference("test accuracy on digits, points: with LePE minus without", ">=", 3,
                   lepe=digits_accuracy(trial, model=WithLePE, batch_size=32),
                   without=digits_accuracy(trial, model=WithoutLePE, batch_size=32)),
    ]  # fmt: skip


class WindowAttention(CrossShapedAttention):
    """Windows of 4x4 for all heads."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return window_attention(query, key, value, grid_of(query.shape[-2], self.grid), WINDOW)

    def finish(self, mixed: Tensor, query: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        assert self.lepe is not None
        assert self.lepe.bias is not None
        values, grid = value.transpose(1, 2).flatten(2), grid_of(query.shape[1], self.grid)
        near = window_lepe(values, grid, WINDOW, self.lepe.weight[:, 0], self.lepe.bias)
        return self.out_proj(mixed.transpose(1, 2).flatten(2) + near)


class CrossViT(ViT):
    kind: type[CrossShapedAttention] = CrossShapedAttention

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape, patch=1, dim=32, depth=2, heads=4, attention=self.kind)


class WindowViT(CrossViT):
    kind = WindowAttention


class WithLePE(CSWin):
    lepe = True

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape, dim=32, depths=(2,), heads=(4,), stripes=(1,), patch=1, lepe=self.lepe)


class WithoutLePE(WithLePE):
    lepe = False
