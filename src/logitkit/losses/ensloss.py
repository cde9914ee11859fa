"""EnsLoss: a new random calibrated loss for every batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import (
    check_batch,
    check_positive,
    check_reduction,
    draw_normal,
    draw_uniform,
    reduce,
    row_weights,
)
from logitkit.registry import Choice, part


def inverse_box_cox(
    u: Float[Tensor, "*shape"], lam: float | Float[Tensor, ""] = 0.0
) -> Float[Tensor, "*shape"]:
    """max(1 + lam u, 0)^(1/lam), and exp(u) at lam = 0; inf where 1 + lam u <= 0 with lam < 0."""
    lam = torch.as_tensor(lam, dtype=u.dtype, device=u.device)
    divisor = torch.where(lam == 0, torch.ones_like(lam), lam)
    base = torch.log1p((lam * u).clamp(min=-1.0))
    return torch.where(lam == 0, u, base / divisor).exp()


def random_calibrated_derivative(
    z: Float[Tensor, " batch *scorers"],
    lam: float | Float[Tensor, ""] = 0.0,
    generator: torch.Generator | None = None,
    kept: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch *scorers"]:
    """The derivative at margins z of a convex calibrated loss drawn at random, one loss per scorer.

    As many draws r = -min(inverse_box_cox(u), 1), u ~ N(0, 1), as there are margins; sorted, the largest
    magnitude goes to the smallest margin. Beyond z = 1 it is divided by z, so that the loss has a tail that
    is bounded below. Rows not `kept` take no part.
    """
    z = z.detach()
    r = -inverse_box_cox(draw_normal(z.shape, z, generator), lam).clamp(max=1.0)
    if kept is not None:  # the others go last in both orders, with a derivative of 0
        out = ~kept.view(-1, *[1] * (z.ndim - 1))
        z, r = z.masked_fill(out, torch.inf), r.masked_fill(out, 0.0)
    g = torch.zeros_like(z).scatter(0, z.argsort(dim=0), r.sort(dim=0).values)
    return g / z.clamp(min=1.0) - 1e-6


@part(
    "ensloss",
    "losses",
    title="EnsLoss: Stochastic Calibrated Loss Ensembles for Preventing Overfitting in Classification",
    paper="arXiv:2409.00908",
    number=72,
    replaces="cross_entropy",
    search_space={"period": Choice(None, 10, 20, 50)},
    no_gradcheck="g is held constant in the gradient; the value g z is no objective",
)
class EnsLoss(nn.Module):
    """EnsLoss: small or noisy data that a fixed loss overfits; every batch gets another calibrated loss.

    Equation: with margins z_i = y_i f(x_i), y in {-1, 1}, l_i = g_i z_i, g held constant, where g is a
    random non-decreasing negative function of z: r = -min(B_lam(u), 1), u ~ N(0, 1), sorted onto the sorted
    margins, divided by z beyond z = 1, minus 1e-6. B_lam is the inverse Box-Cox transform, exp at lam = 0.
    Two classes: f = h_1 - h_0. More: one scorer per class against the rest, their losses summed.

    Shapes: logits (batch, classes) real scores, target (batch,) integer labels; returns a scalar, or
    (batch,) with `reduction="none"`. The value means nothing: watch the accuracy.

    Defaults: lam stays at 0 (`period=None`), as in every benchmark the authors publish. With a `period`, lam
    is drawn anew from U(-1, 1) as every `period`-th epoch begins (they try 10, 20 and 50); an epoch is
    `num_samples` examples seen in training mode. Draws come from `generator`, on its device, else from
    torch's global CPU generator; the generator's state is part of the state_dict, and with one the call
    cannot be compiled whole.

    Raises: ValueError for a period without num_samples, either below 1, wrong shapes or dtypes, NaN logits,
    labels out of range, an empty batch.

    Source: Dai, ICML 2025, arXiv:2409.00908, algorithm 1; details from `ensLoss` in the authors' `losses.py`.

    Not for: probabilities, since only the sign of f is trained; batches of a few examples, where the draws
    are hardly a loss; early stopping on the loss.
    """

    weight: Tensor | None
    lam: Tensor
    seen: Tensor

    def __init__(
        self,
        period: int | None = None,
        num_samples: int | None = None,
        *,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if period is not None:
            if num_samples is None:
                raise ValueError(f"period={period} counts epochs, so it needs num_samples, got None.")
            check_positive(period=period, num_samples=num_samples)
        self.period = period
        self.num_samples = num_samples
        self.generator = generator
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)
        self.register_buffer("lam", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(
        self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(logits, target, self.ignore_index)
        safe, counts = row_weights(target, self.weight, self.ignore_index, logits)
        z = one_vs_rest_margins(logits, safe)
        g = random_calibrated_derivative(z, self.lam, self.generator, target != self.ignore_index)
        if self.training and self.period is not None:
            self._count(len(target))
        return reduce((g * z).sum(dim=-1), self.reduction, counts)

    def _count(self, batch: int) -> None:
        """Move on by one batch; where the next one begins a `period`-th epoch, draw lam."""
        assert self.period is not None
        assert self.num_samples is not None
        epoch = self.seen // self.num_samples  # of the batch just seen, from 0; the authors count from 1
        self.seen += batch
        following = self.seen // self.num_samples
        redraw = (following > epoch) & ((following + 1) % self.period == 0)
        fresh = 2 * draw_uniform((), self.lam, self.generator) - 1
        self.lam.copy_(torch.where(redraw, fresh, self.lam))

    def get_extra_state(self) -> UInt8[Tensor, " bytes"]:
        return torch.empty(0, dtype=torch.uint8) if self.generator is None else self.generator.get_state()

    def set_extra_state(self, state: UInt8[Tensor, " bytes"]) -> None:
        if len(state):
            if self.generator is None:
                self.generator = torch.Generator()
            self.generator.set_state(state.cpu())


def one_vs_rest_margins(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, "batch scorers"]:
    """y f per scorer: f = h_1 - h_0 for two classes, else f = h_k for each class k against the rest."""
    if logits.shape[1] == 2:
        return ((2 * target - 1) * (logits[:, 1] - logits[:, 0]))[:, None]
    return (2 * F.one_hot(target, logits.shape[1]) - 1) * logits
