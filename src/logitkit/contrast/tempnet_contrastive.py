"""Contrastive learning with a temperature per example, predicted by a small network for each view."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_features, check_numbers, check_positive, draw_uniform, values_visible
from logitkit.ops.sphere import cosine, unit
from logitkit.registry import Real, part


class TemperatureGenerator(nn.Module):
    """A temperature in [tau_min, tau_max] for each unit embedding, from its likeness to learned prototypes.

    u = dropout(sigmoid(A x + b)), q = P u with unit rows of P, w = softmax(q / exp(s)),
    t = tau_min + (tau_max - tau_min) sigmoid(v . ((w - 1/M) sigmoid(q)) + b'), M prototypes.
    """

    def __init__(
        self, in_features: int, prototypes: int, tau_min: float, tau_max: float, dropout: float
    ) -> None:
        super().__init__()
        self.tau_min, self.tau_max = tau_min, tau_max
        self.dropout = dropout
        self.project = nn.Linear(in_features, in_features)
        self.prototypes = nn.Parameter(torch.randn(prototypes, in_features))
        self.sharpness = nn.Parameter(torch.tensor(math.log(0.01)))
        self.last = nn.Linear(prototypes, 1)
        nn.init.ones_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        u = self.project(x.to(self.project.weight.dtype)).sigmoid()
        if self.training and self.dropout:
            u = u * (draw_uniform(u.shape, u) >= self.dropout) / (1 - self.dropout)
        q = F.linear(u, unit(self.prototypes).to(u.dtype))
        w = torch.softmax(q / self.sharpness.exp(), dim=1)
        raised = self.last((w - 1 / w.shape[1]) * q.sigmoid())[:, 0].to(x.dtype)
        return self.tau_min + (self.tau_max - self.tau_min) * raised.sigmoid()


@part(
    "tempnet_contrastive",
    "contrast",
    title="To Cool or not to Cool? Temperature Network Meets Large Foundation Models via DRO",
    paper="arXiv:2404.04575",
    number=88,
    companion_of="tempnet",
    tasks=("retrieval",),
    needs=("ids",),
    search_space={"rho": Real(1.0, 9.0), "gamma": Real(0.1, 1.0)},
    no_gradcheck="its value is not what it descends: weights of negatives are constants, as in the paper",
)
class TempNetContrastive(nn.Module):
    """Two-view contrastive learning in which every anchor has its own temperature: low where its negatives
    are spread out, high in dense clusters of similar meanings.

    Equation: per anchor i and direction, d_ij = s_ij - s_ii for negatives j, s the cosines, and t_i the
    `TemperatureGenerator`'s. g_i = mean_j exp(d_ij / t_i) enters a moving average
    S_i <- (1 - gamma) S_i + gamma g_i kept for every example of the training set (its first visit sets it).
    With constant weights w_ij = exp(d_ij / t_i) / (n S_i), n negatives, the loss is
    sum_j w_ij d_ij + t_i (log S_i + rho - sum_j w_ij d_ij / t_i), averaged over anchors and added over the
    two directions; in the second term only the factor t_i has a gradient. With gamma = 1 the gradient is that
    of the robust loss t_i log mean_j exp(d_ij / t_i) + t_i rho, for encoders and temperatures alike.

    Shapes: view_a, view_b (batch, in_features) real, row i of one belonging to row i of the other; ids
    (batch,) each pair's place in the training set. Returns a scalar. S is updated in training mode only, and
    held as its logarithm (buffers `log_s_a`, `log_s_b`). `temperatures(view_a, view_b)` gives both t.

    Defaults: gamma = 0.8, rho = 8, 256 prototypes, dropout 0.5 and t in [0.005, 0.05], as in the authors'
    code. rho must be below log n to leave a choice; 8 is for their millions of pairs.

    Raises: ValueError for bounds that are not 0 < tau_min < tau_max, a gamma outside (0, 1], sizes that are
    not positive, views that do not match, wrong shapes or dtypes, NaN, or ids outside the training set.

    Source: Qiu, Guo, Xu, Zhao, Zhou, Zhang, Yang, ICML 2024, arXiv:2404.04575, section 4.3 and algorithm 1;
    the authors' `iSogCLR_TempNet_Loss`, whose first epoch sets S anew instead of each first visit. They give
    the temperature networks a learning rate of their own.

    Not for: batches without negatives; similarities that are not cosines.
    """

    log_s_a: Tensor
    log_s_b: Tensor

    def __init__(
        self,
        in_features: int,
        num_samples: int,
        gamma: float = 0.8,
        rho: float = 8.0,
        prototypes: int = 256,
        tau_min: float = 0.005,
        tau_max: float = 0.05,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive(
            in_features=in_features, num_samples=num_samples, prototypes=prototypes, tau_min=tau_min
        )
        if not tau_min < tau_max < math.inf:
            raise ValueError(f"tau_min must be below tau_max, got {tau_min} and {tau_max}.")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}.")
        self.in_features = in_features
        self.gamma = gamma
        self.rho = rho
        settings = (in_features, prototypes, tau_min, tau_max, dropout)
        self.generator_a = TemperatureGenerator(*settings)
        self.generator_b = TemperatureGenerator(*settings)
        for name in ("log_s_a", "log_s_b"):
            self.register_buffer(name, torch.full((num_samples,), torch.nan))

    def forward(
        self,
        view_a: Float[Tensor, "batch d"],
        view_b: Float[Tensor, "batch d"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        a, b = self._check(view_a, "view_a"), self._check(view_b, "view_b")
        if a.shape != b.shape:
            raise ValueError(f"views must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
        ids = self._check_ids(ids, len(a))
        similarity = cosine(a, b)
        t_a, t_b = self.temperatures(view_a, view_b)
        return self._direction(similarity, t_a, self.log_s_a, ids) + self._direction(
            similarity.T, t_b, self.log_s_b, ids
        )

    def temperatures(
        self, view_a: Float[Tensor, "batch d"], view_b: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The temperature of each row as an anchor of its own view."""
        a, b = self._check(view_a, "view_a"), self._check(view_b, "view_b")
        return self.generator_a(unit(a.detach())), self.generator_b(unit(b.detach()))

    def _direction(
        self,
        similarity: Float[Tensor, "batch batch"],
        t: Float[Tensor, " batch"],
        log_s: Float[Tensor, " samples"],
        ids: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Anchors are rows, their positives the diagonal."""
        n = len(similarity)
        if n == 1:  # no negatives: nothing to learn
            return 0 * (similarity.sum() + t.sum())
        d = similarity - similarity.diagonal()[:, None]
        itself = torch.eye(n, dtype=torch.bool, device=d.device)
        with torch.no_grad():
            scaled = (d / t[:, None]).masked_fill(itself, -torch.inf)
            log_g = scaled.logsumexp(dim=1) - math.log(n - 1)
            log_old = log_s[ids].to(log_g.dtype)
            old = log_old + math.log1p(-self.gamma) if self.gamma < 1 else torch.full_like(log_g, -torch.inf)
            averaged = torch.where(log_old.isnan(), log_g, torch.logaddexp(old, log_g + math.log(self.gamma)))
            if self.training:
                log_s[ids] = averaged.to(log_s.dtype)
            w = (scaled - averaged[:, None]).exp() / (n - 1)
            slope = averaged + self.rho - (w * d).sum(dim=1) / t
        return ((w * d).sum(dim=1) + slope * t).mean()

    def _check(self, x: Tensor, name: str) -> Tensor:
        if x.ndim != 2:
            raise ValueError(f"{name} must have shape (batch, {self.in_features}), got {tuple(x.shape)}.")
        x = check_features(x, self.in_features)
        check_numbers(x, name)
        return x

    def _check_ids(self, ids: Tensor, batch: int) -> Tensor:
        if ids.shape != (batch,) or ids.is_floating_point():
            raise ValueError(
                f"ids must be integers of shape ({batch},) to match the views, got {ids.dtype} of shape"
                f" {tuple(ids.shape)}."
            )
        if values_visible(ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= len(self.log_s_a):
                raise ValueError(
                    f"ids name {low if low < 0 else high}; expected places in [0, {len(self.log_s_a)})."
                )
        return ids.long()
