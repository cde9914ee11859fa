"""Smooth adversarial comp-sum: accuracy from the comp-sum loss, robustness from steady logits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit import ops
from logitkit.ops import check_batch, check_positive, check_reduction, reduce, row_weights
from logitkit.registry import Real, part
from logitkit.robust.pgd import PGD, Model, evaluating


def margin_shift(
    logits_adv: Float[Tensor, "batch classes"],
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """||D(x', y) - D(x, y)||_2 per row, D(x, y) the margins h_y - h_k of label y over each class k."""
    shift = logits_adv - logits
    return torch.linalg.vector_norm(shift.gather(-1, target[:, None]) - shift, dim=-1)


@part(
    "adv_comp_sum",
    "robust",
    title="Cross-Entropy Loss Functions: Theoretical Analysis and Applications (smooth adversarial)",
    paper="arXiv:2304.07288",
    number=2,
    companion_of="comp_sum",
    replaces="cross_entropy",
    needs=("model", "inputs"),
    search_space={
        "tau": Real(0.5, 2.0),
        "rho": Real(0.5, 4.0, log=True),
        "nu": Real(0.1, 10.0, log=True),
    },
    no_compile="its attack differentiates the model inside the call",
)
class AdvCompSum(nn.Module):
    """Smooth adversarial comp-sum loss: adversarial training that gives up little clean accuracy.

    Equation: l = Phi_tau(sum_{k != y} exp((h_k - h_y) / rho)) + nu max_{||x' - x|| <= eps}
    ||D(x', y) - D(x, y)||_2, with Phi_tau as in `comp_sum`, h = model(x), and D(x, y) the vector of margins
    h_y - h_k. The maximum is approached by PGD and its point held constant in the gradient.

    Shapes: logits = model(inputs) (batch, classes), target (batch,) integer labels, inputs (batch, ...)
    floats; returns a scalar, or (batch,) with `reduction="none"`. eps is in the units of the inputs.

    Defaults: tau = rho = nu = 1; eps = 8/255 in the "linf" ball and 10 steps of eps / 4, for pixels in [0, 1]
    (then pass `clamp=(0, 1)`). Replace the attribute `attack` for another ball. The attack sees the model in
    evaluation mode; the gradient passes through it in its own mode.

    Raises: ValueError for tau < 0, rho, nu, eps or steps that are not positive, inputs of another batch size
    or dtype, wrong shapes or dtypes, NaN logits, labels out of range, an empty batch.

    Source: Mao, Mohri, Zhong, ICML 2023, arXiv:2304.07288, section 5, smooth adversarial comp-sum losses.

    Not for: a tight budget, as it runs the model `steps` + 2 more times per batch; robustness beyond `eps`.
    """

    weight: Tensor | None

    def __init__(
        self,
        tau: float = 1.0,
        rho: float = 1.0,
        nu: float = 1.0,
        *,
        eps: float = 8 / 255,
        steps: int = 10,
        clamp: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Float[Tensor, " classes"] | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_positive(rho=rho, nu=nu)
        if not tau >= 0:
            raise ValueError(f"tau must be at least 0, got {tau}.")
        self.tau = tau
        self.rho = rho
        self.nu = nu
        self.attack = PGD(eps, steps, clamp=clamp, generator=generator)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        model: Model,
        inputs: Float[Tensor, " batch *shape"],
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        logits, target = check_batch(logits, target, self.ignore_index)
        if inputs.shape[0] != logits.shape[0]:
            raise ValueError(
                f"inputs must have {logits.shape[0]} rows as the logits, got {tuple(inputs.shape)}."
            )
        y, counts = row_weights(target, self.weight, self.ignore_index, logits)
        log_p = F.log_softmax(logits / self.rho, dim=-1).gather(-1, y[:, None])[:, 0]
        shift = margin_shift(model(self._worst(model, inputs, y)).to(logits.dtype), logits, y)
        return reduce(ops.comp_sum(log_p, self.tau) + self.nu * shift, self.reduction, counts)

    def _worst(self, model: Model, x: Tensor, y: Int[Tensor, " batch"]) -> Tensor:
        """x' in the ball around x that moves the margins most."""
        with evaluating(model):
            with torch.no_grad():
                clean = model(x)
            return self.attack.ascend(lambda x_adv: margin_shift(model(x_adv), clean, y).sum(), x)
