"""Mixtures of Gaussian experts whose gate keeps the top K: density, fit, and how fast the fit can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops import check_features, check_numbers, check_positive, check_regression
from logitkit.ops.fitted import Fitted
from logitkit.ops.mixture import gaussian_log_joint, log_gate
from logitkit.registry import Whole, part

# Of a response's variance: no expert's may be smaller.
FLOOR = 1e-6
# Gain in log-likelihood per row below which EM has arrived.
TOLERANCE = 1e-8


class Parameters(NamedTuple):
    """k experts on d features, in float64: weight and bias of the gate, slope and intercept of the mean, and
    the variance."""

    gate_weight: Float[Tensor, "k d"]
    gate_bias: Float[Tensor, " k"]
    slope: Float[Tensor, "k d"]
    intercept: Float[Tensor, " k"]
    variance: Float[Tensor, " k"]


def topk_log_gate(
    x: Float[Tensor, "batch d"],
    gate_weight: Float[Tensor, "k d"],
    gate_bias: Float[Tensor, " k"],
    active: int,
) -> Float[Tensor, "batch k"]:
    """log of the gate: softmax of x w_i + bias_i over the `active` experts with the largest x w_i, -inf for
    the others. The bias takes no part in the selection."""
    return log_gate(x @ gate_weight.T, gate_bias, active)


def log_density(
    x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"], p: Parameters, active: int
) -> Float[Tensor, " batch"]:
    """log g(y | x)."""
    return torch.logsumexp(_log_joint(x, y, p, active), dim=1)


def _log_joint(x: Tensor, y: Tensor, p: Parameters, active: int) -> Float[Tensor, "batch k"]:
    mean = x @ p.slope.T + p.intercept
    return gaussian_log_joint(y, topk_log_gate(x, p.gate_weight, p.gate_bias, active), mean, p.variance)


def em_step(
    x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"], p: Parameters, active: int
) -> tuple[Parameters, float]:
    """One step of EM and the mean log-likelihood it reaches, which is never lower than before: experts by
    weighted least squares, then the gate by a Newton step on the experts that each row keeps, shortened until
    the likelihood does not fall (a step that changes which experts are kept may lower it)."""
    joint = _log_joint(x, y, p, active)
    share, best = joint.softmax(dim=1), joint.logsumexp(dim=1).mean().item()
    experts = _experts(x, y, share, p)
    if (reached := _likelihood(x, y, experts, active)) >= best:
        p, best = experts, reached
    weight, bias = _newton(x, share, p, active)
    for halvings in range(8):
        length = 0.5**halvings
        moved = p._replace(gate_weight=p.gate_weight + length * weight, gate_bias=p.gate_bias + length * bias)
        if (reached := _likelihood(x, y, moved, active)) >= best:
            return moved, reached
    return p, best


def _likelihood(x: Tensor, y: Tensor, p: Parameters, active: int) -> float:
    return log_density(x, y, p, active).mean().item()


def _experts(x: Tensor, y: Tensor, share: Float[Tensor, "batch k"], p: Parameters) -> Parameters:
    """Slopes, intercepts and variances given each expert's share of every row; one without rows stays."""
    design = torch.cat([x, torch.ones_like(y)[:, None]], dim=1)
    gram = torch.einsum("nk,ni,nj->kij", share, design, design)
    moment = torch.einsum("nk,ni,n->ki", share, design, y)
    ridge = 1e-12 * len(y) * torch.eye(design.shape[1], dtype=x.dtype, device=x.device)
    solution = torch.linalg.solve(gram + ridge, moment[..., None])[..., 0]
    mass = share.sum(dim=0)
    residual = (y[:, None] - design @ solution.T).square()
    variance = (share * residual).sum(dim=0) / mass.clamp(min=1e-12)
    kept = mass > design.shape[1] * 1e-6
    return p._replace(
        slope=torch.where(kept[:, None], solution[:, :-1], p.slope),
        intercept=torch.where(kept, solution[:, -1], p.intercept),
        variance=torch.where(kept, variance.clamp(min=FLOOR * float(y.var())), p.variance),
    )


def _newton(
    x: Tensor, share: Float[Tensor, "batch k"], p: Parameters, active: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Newton step of sum share * log gate, the last expert's gate held at its place."""
    k = share.shape[1]
    gate = topk_log_gate(x, p.gate_weight, p.gate_bias, active).exp()
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    width = design.shape[1]
    slope = ((share - gate).T @ design)[:-1].flatten()
    spread = torch.diag_embed(gate) - gate[:, :, None] * gate[:, None]
    curvature = torch.einsum("nab,ni,nj->aibj", spread[:, :-1, :-1], design, design)
    matrix = curvature.reshape((k - 1) * width, (k - 1) * width)
    ridge = 1e-8 * len(x) * torch.eye(len(matrix), dtype=x.dtype, device=x.device)
    step = torch.linalg.solve(matrix + ridge, slope).view(k - 1, width)
    step = torch.nn.functional.pad(step, (0, 0, 0, 1))
    return step[:, :-1], step[:, -1]


@part(
    "topk_moe",
    "theory",
    title="Statistical Perspective of Top-K Sparse Softmax Gating Mixture of Experts",
    paper="arXiv:2309.13850",
    number=28,
    tasks=("regression",),
    search_space={"experts": Whole(2, 8)},
)
class TopKMoE(Fitted):
    """A mixture of Gaussian linear experts of which the gate keeps the top K: the model in which the paper
    says how many examples sparse mixtures need, and what too many experts cost.

    Equation: g(y | x) = sum_i pi_i(x) N(y | a_i x + b_i, s_i^2), pi = softmax over the K experts with the
    largest w_i x, of w_i x + c_i; the bias c_i does not select. With as many experts as the truth has,
    density and parameters are estimated at rate n^(-1/2). With more, the density is only if K reaches the
    largest total size of K* Voronoi cells (`voronoi_cells`), K* being the truth's own K, and in a cell of m
    fitted experts w and b come at n^(-1/(2 r(m))), a and s^2 at n^(-1/r(m)), with r(2) = 4 and r(3) = 6.

    Shapes: `fit(x, y)` with x (batch, d) and y (batch,) or (batch, 1); `predict(x)` -> E[y | x] (batch,), in
    at least float32. `log_prob(x, y)` -> (batch,) nats, `gate(x)` -> (batch, experts), `sample(x, generator)`
    -> (batch,). `parameters_` is what was fitted, `TopKMoE.of(parameters, active)` a model with given ones.

    Defaults: all experts active; the best of 3 starts of at most 200 steps of EM (`em_step`), drawn from
    `seed`, or one from `start`. Gates are known up to adding one vector to all w and one number to all c: the
    last expert's stay where they start, 0 by default. Variances are kept above 1e-6 of that of y. Everything
    is computed in float64.

    Raises: ValueError for numbers of experts, restarts or steps that are not positive, `active` outside
    [1, experts], x or y of another shape or dtype, NaN, an empty batch, a start of another size, or use
    before `fit`.

    Source: Nguyen, Akbarian, Yan, Ho, ICLR 2024, arXiv:2309.13850, equations 1 and 2 and theorems 1 to 4.

    Not for: features that are learned at the same time (see the head `topk_moe`); many features, as the
    gate's Newton step solves experts * d equations.
    """

    gate_weight: Tensor
    gate_bias: Tensor
    slope: Tensor
    intercept: Tensor
    variance: Tensor

    def __init__(
        self, experts: int = 2, active: int | None = None, restarts: int = 3, steps: int = 200, seed: int = 0
    ) -> None:
        super().__init__()
        check_positive(experts=experts, restarts=restarts, steps=steps)
        if active is not None and not 1 <= active <= experts:
            raise ValueError(f"active must lie between 1 and the {experts} experts, got {active}.")
        self.experts = experts
        self.active = experts if active is None else active
        self.restarts = restarts
        self.steps = steps
        self.seed = seed
        for name in Parameters._fields:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @classmethod
    def of(cls, parameters: Parameters, active: int | None = None) -> TopKMoE:
        """A model with these parameters."""
        model = cls(len(parameters.gate_bias), active)
        model._keep(parameters)
        return model

    @property
    def parameters_(self) -> Parameters:
        """What was fitted."""
        if not self.gate_bias.numel():
            raise ValueError(f"topk_moe with {self.experts} experts must be fitted first.")
        return Parameters(*(getattr(self, name) for name in Parameters._fields))

    @torch.no_grad()
    def fit(
        self,
        x: Float[Tensor, "batch d"],
        y: Float[Tensor, " batch"] | Float[Tensor, "batch 1"],
        start: Parameters | None = None,
    ) -> TopKMoE:
        """Maximise the likelihood; returns self."""
        x = self._inputs(x)
        y = check_regression(y, y)[0].double()
        if len(y) != len(x):
            raise ValueError(f"y must have shape ({len(x)},) to match x, got ({len(y)},).")
        if start is None:
            generator = torch.Generator().manual_seed(self.seed)
            starts = [self._random(x, y, generator) for _ in range(self.restarts)]
        else:
            if start.gate_weight.shape != (self.experts, x.shape[1]):
                raise ValueError(
                    f"start must have {self.experts} experts on {x.shape[1]} features, got"
                    f" {tuple(start.gate_weight.shape)}."
                )
            starts = [Parameters(*(each.double().to(x.device) for each in start))]
        found = [self._em(x, y, each) for each in starts]
        self._keep(max(found, key=lambda each: each[1])[0])
        return self

    def predict(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The mean response."""
        p, exact = self.parameters_, self._inputs(x)
        mean = exact @ p.slope.T + p.intercept
        return (self.gate(x) * mean).sum(dim=1).to(torch.promote_types(x.dtype, torch.float32))

    def gate(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch k"]:
        """pi: how much each expert counts, in float64."""
        p = self.parameters_
        return topk_log_gate(self._inputs(x), p.gate_weight, p.gate_bias, self.active).exp()

    def log_prob(self, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """log g(y | x), in nats and float64."""
        return log_density(self._inputs(x), y.double(), self.parameters_, self.active)

    @torch.no_grad()
    def sample(
        self, x: Float[Tensor, "batch d"], generator: torch.Generator | None = None
    ) -> Float[Tensor, " batch"]:
        """One response for each row, in float64; `generator` is one of the CPU."""
        p = self.parameters_
        expert = torch.multinomial(self.gate(x).cpu(), 1, generator=generator)[:, 0].to(x.device)
        mean = (x.double() * p.slope[expert]).sum(dim=1) + p.intercept[expert]
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64).to(mean)
        return mean + p.variance[expert].sqrt() * noise

    def _em(self, x: Tensor, y: Tensor, p: Parameters) -> tuple[Parameters, float]:
        """The end of EM from p, and its mean log-likelihood."""
        before = -math.inf
        for _ in range(self.steps):
            p, reached = em_step(x, y, p, self.active)
            if reached - before < TOLERANCE:
                break
            before = reached
        return p, reached

    def _random(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Parameters:
        """A random gate, and experts fitted to random shares of the rows."""
        k, d = self.experts, x.shape[1]
        weight = torch.randn(k, d, generator=generator, dtype=torch.float64).to(x.device)
        share = torch.rand(len(y), k, generator=generator, dtype=torch.float64).to(x.device)
        zeros = x.new_zeros(k)
        empty = Parameters(weight - weight[-1], zeros, x.new_zeros(k, d), zeros, zeros + 1)
        return _experts(x, y, share.square() / share.square().sum(dim=1, keepdim=True), empty)

    def _keep(self, p: Parameters) -> None:
        for name, value in zip(Parameters._fields, p, strict=True):
            setattr(self, name, value.double().clone())

    def _inputs(self, x: Tensor) -> Float[Tensor, "batch d"]:
        d = self.gate_weight.shape[1] if self.gate_weight.ndim == 2 else None
        x = check_features(x, d).double()
        check_numbers(x, "x")
        return x


class Estimate(NamedTuple):
    """A number found by sampling, and its standard error."""

    value: float
    error: float


@torch.no_grad()
def hellinger(
    model: TopKMoE, truth: TopKMoE, x: Float[Tensor, "batch d"], generator: torch.Generator | None = None
) -> Estimate:
    """Hellinger distance of g(. | x) between two models, averaged in square over the rows of `x`.

    h^2 = E[1 - sech(d / 2)], d the difference of the log densities at a response drawn from either model with
    equal chance: a mean of numbers in [0, 1] that vanish with d, so that small distances keep their digits.
    The more rows the less the error.
    """
    first = torch.rand(len(x), generator=generator) < 0.5
    y = torch.where(first.to(x.device), model.sample(x, generator), truth.sample(x, generator))
    half = (model.log_prob(x, y) - truth.log_prob(x, y)) / 2
    # 1 - sech t without its cancellation
    squares = (half / 2).tanh().square() * (1 + 1 / half.clamp(-700, 700).cosh())
    squares = torch.where(half.isfinite(), squares, 1.0)
    value = squares.mean().sqrt().item()
    error = squares.std().item() / math.sqrt(len(squares))
    return Estimate(value, error / (2 * value) if value > 0 else 0.0)


def voronoi_cells(fit: Parameters, truth: Parameters) -> Int[Tensor, " k"]:
    """For every fitted expert the nearest true one, by gate weight, slope, intercept and standard deviation.
    Gate weights must be comparable: the same expert's, say the last, 0 in both."""
    return torch.cdist(_atoms(fit), _atoms(truth)).argmin(dim=1)


def voronoi_loss(fit: Parameters, truth: Parameters, r: Sequence[float] = (1.0, 4.0, 6.0)) -> float:
    """How far the fitted experts are from the true ones, in the powers at which the paper's theorems bound it
    by the Hellinger distance.

    sum_j |sum_{i in cell j} exp(c_i) - exp(c_j)| + sum_i exp(c_i) D_i, with D_i = |dw| + |da| + |db| +
    |ds^2| for an expert alone in its cell, and |(dw, db)|^r + |(da, ds^2)|^(r/2) in a cell of m > 1, r the
    m-th of `r`. Gates must be comparable as in `voronoi_cells`.
    """
    cell = voronoi_cells(fit, truth)
    size = cell.bincount(minlength=len(truth.gate_bias))
    if int(size.max()) > len(r):
        raise ValueError(f"r has {len(r)} powers, but a cell holds {int(size.max())} experts.")
    weight = fit.gate_bias.exp()
    total = torch.zeros_like(truth.gate_bias).index_add(0, cell, weight)
    loss = (total - truth.gate_bias.exp()).abs().sum()
    away = [each - near[cell] for each, near in zip(fit, truth, strict=True)]
    dw, _, da, db, dv = (each if each.ndim == 2 else each[:, None] for each in away)
    norm = torch.linalg.vector_norm
    alone = norm(dw, dim=1) + norm(da, dim=1) + db.abs()[:, 0] + dv.abs()[:, 0]
    power = torch.tensor(r, dtype=weight.dtype, device=weight.device)[size[cell] - 1]
    several = norm(torch.cat([dw, db], dim=1), dim=1) ** power
    several = several + norm(torch.cat([da, dv], dim=1), dim=1) ** (power / 2)
    return (loss + (weight * torch.where(size[cell] > 1, several, alone)).sum()).item()


def _atoms(p: Parameters) -> Float[Tensor, "k numbers"]:
    return torch.cat([p.gate_weight, p.slope, p.intercept[:, None], p.variance.sqrt()[:, None]], dim=1)


class Rate(NamedTuple):
    """One sample size: the density's distance from the truth, and the mean distance of each true expert's
    slope, intercept and standard deviation from those fitted in its cell (NaN for an empty cell)."""

    n: int
    density: Estimate
    experts: list[float]


def rate_experiment(
    truth: TopKMoE,
    sizes: Sequence[int],
    start: Parameters,
    active: int,
    draw: Callable[[int, torch.Generator], Float[Tensor, "n d"]],
    generator: torch.Generator,
    steps: int = 200,
    samples: int = 20_000,
) -> list[Rate]:
    """Fit a mixture of the start's size to samples of the truth of every size, from `start`.

    draw: (n, generator) -> n inputs x.
    """
    found = []
    for n in sizes:
        x = draw(n, generator)
        model = TopKMoE(len(start.gate_bias), active, steps=steps).fit(x, truth.sample(x, generator), start)
        fitted, true = model.parameters_, truth.parameters_
        cell = voronoi_cells(fitted, true)
        away = torch.linalg.vector_norm(
            (_atoms(fitted) - _atoms(true)[cell])[:, fitted.gate_weight.shape[1] :], dim=1
        )
        experts = [away[cell == j].mean().item() for j in range(len(true.gate_bias))]
        found.append(Rate(n, hellinger(model, truth, draw(samples, generator), generator), experts))
    return found


def convergence_slope(sizes: Sequence[int], errors: Sequence[float]) -> float:
    """The exponent of n: slope of log error against log n by least squares."""
    x, y = (torch.tensor([math.log(v) for v in values], dtype=torch.float64) for values in (sizes, errors))
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()
