"""USKD: distillation without a teacher, from soft labels that the student makes for itself."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.distill.nkd import log_softmax_of_others
from logitkit.ops import check_batch, check_features, check_positive, check_reduction, reduce, row_weights
from logitkit.registry import Real, part

# Under the probability of not being the label, as in the authors' code.
TINY = 1e-6


def zipf_labels(
    rank: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    """1 / position of each class in the descending order of `rank`, 0 at the label, the others of sum 1."""
    places = rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    z = (1.0 / (places + 1).to(rank.dtype)).scatter(1, target[:, None], 0.0)
    return z / z.sum(dim=1, keepdim=True)


@part(
    "uskd",
    "distill",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized"
    " Loss and Customized Soft Labels",
    paper="arXiv:2303.13005",
    number=80,
    companion_of="nkd",
    needs=("embeddings",),
    search_space={"alpha": Real(0.1, 1.0, log=True), "beta": Real(0.05, 0.5, log=True)},
    no_gradcheck="the soft labels are made of the student's outputs and held constant",
)
class USKDLoss(nn.Module):
    """Self-distillation: soft labels for the label and for the other classes where there is no teacher.

    Equation: l = alpha L_t + beta L_non + mu L_weak. With S the student's softmax, y the label and W the
    softmax of a linear auxiliary head on features from within the network:
    L_t = -(S_y^2 + 1 - mean over the batch of S_y^2) log S_y;
    L_non = -sum_{k != y} Z_k log S^_k, S^ the softmax over the other classes, Z_k proportional to 1 / rank of
    class k in the descending order of W / (1 - W_y) + S / (1 - S_y), the label among them;
    L_weak the cross-entropy of W with labels smoothed by 0.1. L_t's weight and Z have no gradient.

    Shapes: student_logits (batch, classes) real scores, target (batch,) integer labels, embeddings (batch,
    in_features) the pooled features of a layer before the last; returns a scalar in nats, or (batch,) with
    `reduction="none"`. The engine gives the pooled features that the head gets.

    Defaults: alpha = 1, beta = 0.1, mu = 0.005, those of ImageNet; CIFAR-100 has 0.1, 0.1, 0.1.
    `official_rank=True` ranks by log S where the paper has S, as the authors' code does.

    Raises: ValueError for weights below 0, wrong shapes or dtypes, NaN logits, labels out of range, an empty
    batch.

    Source: Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023, arXiv:2303.13005, the section on USKD, and `uskd.py`
    of the authors' code.

    Not for: training by itself: the paper adds it to cross-entropy (`regularize=uskd`). Mixed labels of two
    classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        *,
        official_rank: bool = False,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes)
        check_reduction(reduction)
        if not min(alpha, beta, mu) >= 0:
            raise ValueError(f"alpha, beta and mu must be at least 0, got {alpha}, {beta} and {mu}.")
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.official_rank = official_rank
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.weak_head = nn.Linear(in_features, num_classes)

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        embeddings: Float[Tensor, "batch d"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(student_logits, target, self.ignore_index)
        check_features(embeddings, self.weak_head.in_features)
        if len(embeddings) != len(logits) or logits.shape[1] != self.weak_head.out_features:
            raise ValueError(
                f"student_logits and embeddings must have shapes (batch, {self.weak_head.out_features}) and"
                f" (batch, {self.weak_head.in_features}), got {tuple(logits.shape)} and"
                f" {tuple(embeddings.shape)}."
            )
        safe, counts = row_weights(target, None, self.ignore_index, logits)
        log_s = F.log_softmax(logits, dim=1)
        weak = self.weak_head(embeddings).to(logits.dtype)
        own = log_s.gather(1, safe[:, None])[:, 0]
        sure = own.detach().exp().square()
        l_t = -(sure + 1 - reduce(sure, "mean", counts)) * own
        l_non = -(self.soft_labels(log_s, weak, safe) * log_softmax_of_others(logits, safe)).sum(dim=1)
        l_weak = F.cross_entropy(weak, safe, reduction="none", label_smoothing=0.1)
        return reduce(self.alpha * l_t + self.beta * l_non + self.mu * l_weak, self.reduction, counts)

    @torch.no_grad()
    def soft_labels(
        self,
        log_s: Float[Tensor, "batch classes"],
        weak: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch classes"]:
        """Z, from the student's log-softmax and the auxiliary head's logits."""
        y, w = target[:, None], F.softmax(weak, dim=1)
        s = log_s if self.official_rank else log_s.exp()
        rank = w / (1 - w.gather(1, y) + TINY) + s / (1 - s.gather(1, y) + TINY)
        return zipf_labels(rank, target)
