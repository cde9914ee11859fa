"""TempNet: a softmax whose temperature a small network predicts for every example."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.ops import check_batch, check_positive, check_reduction, draw_uniform, reduce
from logitkit.ops.sphere import unit
from logitkit.registry import Real, part
from logitkit.softmax.base import Normalizer, check_scores


def tau_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    tau: Float[Tensor, " batch"],
    rho: float,
) -> Float[Tensor, " batch"]:
    """t log((1/V) sum_k exp((z_k - z_y) / t)) + t rho, t = tau; see `TempNet`."""
    cross_entropy = F.cross_entropy(logits / tau[:, None], target, reduction="none")
    return tau * cross_entropy + (rho - math.log(logits.shape[1])) * tau


@torch.no_grad()
def solve_tau(
    logits: Float[Tensor, "batch classes"], rho: float, low: float = 0.01, high: float = 1.2
) -> Float[Tensor, " batch"]:
    """The t in [low, high] that minimises `tau_cross_entropy`, whatever the label, in float64.

    There KL(softmax(z / t) || uniform) = rho, or t is at a bound: the divergence falls from log V to 0 as t
    grows. Found by bisection to the last digits.
    """
    z = logits.double()
    low, high = math.log(low), math.log(high)
    lower, upper = z.new_full(z.shape[:1], low), z.new_full(z.shape[:1], high)
    for _ in range(60):
        middle = (lower + upper) / 2
        log_p = F.log_softmax(z / middle.exp()[:, None], dim=1)
        divergence = math.log(z.shape[1]) + (log_p.exp() * log_p).sum(dim=1)
        rises = divergence <= rho  # the loss rises in t from here on
        lower, upper = torch.where(rises, lower, middle), torch.where(rises, middle, upper)
    return ((lower + upper) / 2).exp()


@part(
    "tempnet",
    "softmax",
    title="To Cool or not to Cool? Temperature Network Meets Large Foundation Models via DRO",
    paper="arXiv:2404.04575",
    number=88,
    replaces="softmax",
    search_space={"rho_share": Real(0.3, 0.95), "tau_max": Real(1.0, 5.0, log=True)},
    no_gradcheck="the temperature counts as a constant in the gradient of the scores, as in the paper",
)
class TempNet(Normalizer):
    """A softmax with a learned temperature per example, high where many classes are plausible and low where
    one is: trained with its own robust loss, together with the model or after it.

    Equation: weights = softmax(z / t). The network reads x = z / |z|: u = A2 dropout(sigmoid(A1 x + b1)) +
    b2, w = softmax(u / exp(s)), t = tau_min + (tau_max - tau_min) sigmoid(v . ((w - 1/h) u) + b), with h
    hidden units. Loss = t log((1/V) sum_k exp((z_k - z_y) / t)) + t rho = t CE(z / t, y) + (rho - log V) t,
    the worst case over distributions whose KL divergence to the uniform is at most rho; the best t has
    KL(softmax(z / t) || uniform) = rho. Scores are detached before the network reads them.

    Shapes: scores (..., num_classes), weights of the same, summing to 1; `temperature(scores)` -> (...,).
    `loss(scores, target)` takes (batch, num_classes) and labels (batch,). Half precision is computed in
    float32; weights come back in the scores' dtype, `log` and `loss` in float32.

    Defaults: t in [0.01, 1.2], 256 hidden units, dropout 0.5, v = 1, b = 0 and s = 0 at the start, as in the
    authors' code for language models. Their rho, 8 to 10 for vocabularies of 32000 to 50000, is 0.75 to 0.95
    of its upper limit log V; here rho = `rho_share` log V with 0.75.

    Raises: ValueError for bounds that are not 0 < tau_min < tau_max, a share outside [0, 1], a dropout
    outside [0, 1), sizes that are not positive, scores of another width or dtype, NaN, or labels out of
    range.

    Source: Qiu, Guo, Xu, Zhao, Zhou, Zhang, Yang, ICML 2024, arXiv:2404.04575, equations 3-5 and section 4.2,
    and the authors' `tempnet.py`. `solve_tau` is the temperature that it learns to predict; the contrastive
    form is `TempNetContrastive`.

    Not for: calibration, as rho and not the accuracy decides how sure it is; a handful of classes, where
    log V leaves little to choose.
    """

    def __init__(
        self,
        num_classes: int,
        hidden: int = 256,
        tau_min: float = 0.01,
        tau_max: float = 1.2,
        rho_share: float = 0.75,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(-1)
        check_positive(num_classes=num_classes, hidden=hidden, tau_min=tau_min)
        if not tau_min < tau_max < math.inf:
            raise ValueError(f"tau_min must be below tau_max, got {tau_min} and {tau_max}.")
        if not 0 <= rho_share <= 1:
            raise ValueError(f"rho_share must lie in [0, 1], got {rho_share}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.num_classes = num_classes
        self.tau_min, self.tau_max = tau_min, tau_max
        self.rho = rho_share * math.log(num_classes)
        self.dropout = dropout
        self.first = nn.Linear(num_classes, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.last = nn.Linear(hidden, 1)
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def temperature(self, x: Float[Tensor, "... classes"]) -> Float[Tensor, "..."]:
        """t of each row of scores, in at least float32."""
        x = self._check(x)
        dtype = self.first.weight.dtype
        h = self.first(unit(x.detach()).to(dtype)).sigmoid()
        if self.training and self.dropout:
            h = h * (draw_uniform(h.shape, h) >= self.dropout) / (1 - self.dropout)
        u = self.second(h)
        w = torch.softmax(u / self.sharpness.exp(), dim=-1)
        raised = self.last((w - 1 / w.shape[-1]) * u)[..., 0].to(x.dtype)
        return self.tau_min + (self.tau_max - self.tau_min) * raised.sigmoid()

    def log(self, x: Float[Tensor, "... classes"]) -> Float[Tensor, "... classes"]:
        """log softmax(x / t), in at least float32."""
        return ops.log_softmax(self._check(x) / self.temperature(x)[..., None], -1)

    def loss(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        reduction: str = "mean",
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """The robust loss with the predicted temperatures, in nats."""
        check_reduction(reduction)
        logits, target = check_batch(self._check(logits), target)
        return reduce(tau_cross_entropy(logits, target, self.temperature(logits), self.rho), reduction)

    def _check(self, x: Tensor) -> Tensor:
        x = check_scores(x, self.dim)
        if x.shape[-1] != self.num_classes:
            raise ValueError(f"scores must have {self.num_classes} columns, got shape {tuple(x.shape)}.")
        return x
