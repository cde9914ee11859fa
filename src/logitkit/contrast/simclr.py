"""SimCLR's loss of two views, what other losses of views are compared with."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.contrast.base import check_views
from logitkit.ops import check_positive, nt_xent
from logitkit.registry import Real, part


@part(
    "simclr",
    "contrast",
    title="SimCLR: NT-Xent of two views",
    tasks=("classification", "regression", "multilabel"),
    needs=("views",),
    search_space={"temperature": Real(0.05, 1.0, log=True)},
)
class SimCLRLoss(nn.Module):
    """NT-Xent of two views of each example: learning without labels, by telling an example's other view from
    all else in the batch.

    Equation: mean_i -log( exp(s_{i p(i)}) / sum_{j != i} exp(s_ij) ), s = cosine / temperature, over both
    views of the batch, p(i) the other view of i's example.

    Shapes: views (2, batch, d), or two tensors (batch, d); labels are not looked at. Returns a scalar; 0
    for a batch of one. O(batch) memory, see `ops.nt_xent`.

    Defaults: temperature 0.5, the paper's for small images.

    Raises: ValueError for another number of views, wrong shapes or dtypes, an empty batch, NaN, or a
    temperature that is not positive.

    Source: Chen, Kornblith, Norouzi, Hinton, arXiv:2002.05709, equation 1.

    Not for: small batches, which hold few negatives; classifying by itself, see `cacr`.
    """

    views = 2

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = temperature

    def forward(
        self, views: Float[Tensor, "2 batch d"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        first, second = check_views(views, 2)
        return nt_xent(first, second, temperature=self.temperature)
