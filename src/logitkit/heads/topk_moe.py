"""The sparsely gated mixture of Gaussian experts as a last layer for regression."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from logitkit.ops import (
    check_features,
    check_logits,
    check_positive,
    check_reduction,
    check_regression,
    reduce,
)
from logitkit.ops.mixture import gaussian_log_joint, log_gate
from logitkit.registry import Whole, part

# Of standardised targets: no expert's variance is smaller.
FLOOR = 1e-6


@part(
    "topk_moe",
    "heads",
    title="Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts",
    paper="arXiv:2309.13850",
    number=28,
    companion_of="topk_moe",
    replaces="linear",
    tasks=("regression",),
    search_space={"experts": Whole(4, 16), "active": Whole(1, 4)},
)
class TopKMoEHead(nn.Module):
    """A number predicted as a mixture of linear experts of which each row uses a few, trained by likelihood:
    for targets that follow other laws in other regions, or whose noise has several modes or sizes.

    Equation: g(y | x) = sum_i pi_i(x) N(y | a_i x + b_i, s_i^2), pi = softmax over the `active` experts with
    the largest w_i x, of w_i x + c_i; the bias c_i does not select. loss = -log g; prediction =
    sum_i pi_i (a_i x + b_i). With one expert it is the Gaussian likelihood of a linear layer.

    Shapes: features (batch, in_features) -> (batch, 2 experts): the scores w_i x, then the means a_i x + b_i.
    Biases and variances are the head's own, the same for all rows. `loss(raw, target)` takes real targets
    (batch,) or (batch, 1) and returns nats; `predict(raw)` -> (batch,) in the targets' units; `gate(raw)`
    -> pi (batch, experts).

    Defaults: 4 experts, 2 of them active; weights start as torch's linear layer does, all c at 0 and all s at
    1, the standard deviation of standardised targets. Variances are kept above 1e-6.

    Raises: ValueError for numbers of features or experts that are not positive, `active` outside
    [1, experts], wrong shapes or dtypes, NaN, or an empty batch.

    Source: Nguyen, Akbarian, Yan, Ho, ICLR 2024, arXiv:2309.13850, equations 1 and 2. `theory.TopKMoE` fits
    the same density to given features by expectation maximisation.

    Not for: targets far from unit scale, at which all experts start alike; experts by the hundred, of which
    those never selected never learn.
    """

    def __init__(self, in_features: int, experts: int = 4, active: int = 2) -> None:
        super().__init__()
        check_positive(in_features=in_features, experts=experts)
        if not 1 <= active <= experts:
            raise ValueError(f"active must lie between 1 and the {experts} experts, got {active}.")
        self.in_features = in_features
        self.experts = experts
        self.active = active
        self.score = nn.Linear(in_features, experts, bias=False)
        self.mean = nn.Linear(in_features, experts)
        self.gate_bias = nn.Parameter(torch.zeros(experts))
        self.log_variance = nn.Parameter(torch.zeros(experts))

    def forward(self, features: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch two_experts"]:
        features = check_features(features, self.in_features)
        return torch.cat([self.score(features), self.mean(features)], dim=1)

    def gate(self, raw: Float[Tensor, "batch two_experts"]) -> Float[Tensor, "batch experts"]:
        """pi: how much each expert counts."""
        return self._split(raw)[0].exp()

    def loss(
        self, raw: Float[Tensor, "batch two_experts"], target: Float[Tensor, "..."], reduction: str = "mean"
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Negative log-density of the targets, in nats."""
        check_reduction(reduction)
        log_pi, mean = self._split(raw)
        _, y = check_regression(mean[:, 0], target)
        variance = self.log_variance.to(mean.dtype).clamp(min=math.log(FLOOR)).exp()
        return reduce(-gaussian_log_joint(y, log_pi, mean, variance).logsumexp(dim=1), reduction)

    def predict(self, raw: Float[Tensor, "batch two_experts"]) -> Float[Tensor, " batch"]:
        """The mean of the mixture, in the targets' units."""
        log_pi, mean = self._split(raw)
        return (log_pi.exp() * mean).sum(dim=1)

    def _split(self, raw: Tensor) -> tuple[Float[Tensor, "batch experts"], Float[Tensor, "batch experts"]]:
        """The gate's logarithm and the means."""
        scores, mean = check_logits(raw, "raw", classes=2 * self.experts).chunk(2, dim=1)
        return log_gate(scores, self.gate_bias.to(scores.dtype), self.active), mean
