"""Contrastive attraction and contrastive repulsion: distant positives and close negatives weigh more."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.contrast.base import check_views
from logitkit.ops import weighted_contrastive
from logitkit.registry import Real, part


class Weights(NamedTuple):
    """attraction: of each view of each sample, over its other views. repulsion: of each ordered pair of views
    (u, v), of view u of a sample over view v of the others, 0 on the diagonal of samples and where u = v."""

    attraction: Float[Tensor, "views batch others"]
    repulsion: Float[Tensor, "views views batch batch"]


@part(
    "cacr",
    "contrast",
    title="Contrastive Attraction and Contrastive Repulsion for Representation Learning",
    paper="arXiv:2105.03746",
    number=62,
    replaces="simclr",
    tasks=("classification", "regression", "multilabel"),
    needs=("views",),
    search_space={"t_pos": Real(0.1, 4.0, log=True), "t_neg": Real(0.1, 4.0, log=True)},
)
class CACRLoss(nn.Module):
    """CACR: embeddings of one example's views attract each other, the most distant ones most; those of other
    examples are pushed away, the closest ones most. For learning without labels from several views,
    where classes are unequally frequent above all.

    Equation: alpha mean_x sum_k a_k c(x, x_k) - beta mean_x sum_j b_j c(x, y_j), with c(x, y) = |x - y|^2 of
    embeddings scaled to length 1, a = softmax_k(t_pos c) over the other views of the same example, and
    b = softmax_j(-t_neg c) over one view of every other example, averaged over ordered pairs of views. The
    weights carry gradient. t_pos = 0 or t_neg = 0 weighs all alike, the paper's ablations.

    Shapes: views (views, batch, d), two or more, or as many tensors (batch, d); labels are not looked
    at. Returns a scalar, in at least float32. `weights(views)` are a and b. O(batch) memory, see
    `ops.weighted_contrastive`.

    Defaults: t_pos = t_neg = alpha = beta = 1 and five views, one of which is compared with four, as in the
    authors' code.

    Raises: ValueError for fewer than two views, wrong shapes or dtypes, an empty batch, NaN, a t_pos, t_neg,
    alpha or beta that is negative.

    Source: Zheng et al., TMLR 2023, arXiv:2105.03746, and the authors' code, whose numbers it has. The
    debiased variant there is left out: it adds the positives' cost with the sign that repels them.

    Not for: two views, where all positives weigh the same and only repulsion is weighted; classifying by
    itself: the last layer learns nothing. Add it to a loss (`regularize=0.1*cacr`), or judge embeddings
    (`+task=retrieval`).
    """

    def __init__(
        self, t_pos: float = 1.0, t_neg: float = 1.0, alpha: float = 1.0, beta: float = 1.0, views: int = 5
    ) -> None:
        super().__init__()
        for name, value in (("t_pos", t_pos), ("t_neg", t_neg), ("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if views < 2:
            raise ValueError(f"views must be at least 2, got {views}.")
        self.t_pos, self.t_neg, self.alpha, self.beta, self.views = t_pos, t_neg, alpha, beta, views

    def forward(
        self, views: Float[Tensor, "views batch d"], labels: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        return weighted_contrastive(
            check_views(views), positive_sharpness=self.t_pos, negative_sharpness=self.t_neg,
            attraction=self.alpha, repulsion=self.beta,
        )  # fmt: skip

    @torch.no_grad()
    def weights(self, views: Float[Tensor, "views batch d"]) -> Weights:
        """a and b of each view, in views^2 x batch^2 memory: to see what pulls and what pushes."""
        views = check_views(views)
        z = F.normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=-1)
        count, batch = z.shape[:2]
        other = torch.stack([torch.tensor([v for v in range(count) if v != u]) for u in range(count)])
        near = (z[:, None] - z[other]).square().sum(-1)
        cost = (z[:, None, :, None] - z[None, :, None, :]).square().sum(-1)
        same = torch.eye(batch, dtype=torch.bool)
        push = (-self.t_neg * cost).masked_fill(same.to(z.device), -torch.inf).softmax(-1)
        push = push.nan_to_num(0.0) * (1 - torch.eye(count)).to(z)[:, :, None, None]
        return Weights((self.t_pos * near).softmax(1).transpose(1, 2), push)
