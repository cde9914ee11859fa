"""PerpGrad: any optimiser, on gradients that cannot merely scale the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from logitkit.errors import nearest
from logitkit.registry import Choice, Real, part

BASES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def perpendicular(
    gradient: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"], rescale: bool = True
) -> Float[Tensor, "*shape"]:
    """The part of `gradient` orthogonal to `weight`, at the gradient's length if `rescale`; see `PerpGrad`.

    A zero weight leaves the gradient alone, and a gradient parallel to the weight gives zero.
    """
    w, g = (t if t.dtype == torch.float64 else t.float() for t in (weight, gradient))
    square = (w * w).sum()
    along = torch.where(square > 0, w / square.where(square > 0, 1.0), 0.0)
    length = g.norm()
    for _ in range(2):  # once more, because what rounding leaves along w matters when g is nearly parallel
        g = g - (w * g).sum() * along
    rest = g.norm()
    # What remains of a parallel gradient is rounding noise, which rescaling would blow up into a step.
    parallel = rest <= 8 * torch.finfo(g.dtype).eps * length
    g = torch.where(parallel, 0.0, g * (length / rest) if rescale else g)
    return g.to(gradient.dtype)


@torch.no_grad()
def nlm_cosine(model: nn.Module) -> Float[Tensor, ""]:
    """Cosine between the weights and the descent direction -grad, over all parameters that have a gradient.

    Near 1, training only scales the weights up: naive loss minimisation, which lowers the loss without
    changing a prediction. PerpGrad holds it at 0.
    """
    pairs = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    if not pairs:
        raise ValueError("no parameter of the model has a gradient; call backward first (0 found).")
    weight = torch.cat([p.flatten().double() for p, _ in pairs])
    gradient = torch.cat([g.flatten().double() for _, g in pairs])
    return -torch.nn.functional.cosine_similarity(weight, gradient, dim=0)


@part(
    "perp_grad",
    "train",
    title="Grokking at the Edge of Numerical Stability: the optimiser",
    paper="arXiv:2501.04697",
    number=46,
    companion_of="stablemax",
    tasks=("classification", "binary", "regression"),
    search_space={"lr": Real(1e-4, 1e-1, log=True), "base": Choice("adam", "sgd")},
)
class PerpGrad(Optimizer):
    """PerpGrad: an optimiser that cannot lower the loss by scaling weights along themselves, for training
    past separation without weight decay.

    Equation: for each parameter tensor, g <- g - (<w, g> / <w, w>) w, then, if `rescale`, g <- g |g_0| / |g|
    with g_0 the original gradient; a step of `base` on g follows.

    Shapes: `PerpGrad(params, base="adam", lr=1e-3, ...)` with parameters or parameter groups of any shape,
    and further arguments for `base`; otherwise an ordinary `torch.optim.Optimizer`. `step` overwrites the
    parameters' `.grad` with g.

    Defaults: Adam with lr 1e-3 and torch's other settings, and rescaling, as the authors' code has it (the
    paper's equation has no rescaling). A tensor of zeros, whose direction is undefined, keeps its gradient.
    A gradient parallel to its weights, as that of every single number is, becomes zero; the authors' code
    rescales the rounding noise it leaves.

    Raises: ValueError for an unknown base, sparse gradients, or arguments `base` rejects.

    Source: Prieto, Barsbey, Mediano, Birdal, ICLR 2025, arXiv:2501.04697, the definition of perpGrad in its
    section on preventing naive loss minimisation.

    Not for: scalar parameters that must be learned (a temperature, a gain); weights whose length carries
    meaning, such as a linear regression's.
    """

    def __init__(
        self,
        params: ParamsT,
        base: str | type[Optimizer] = "adam",
        lr: float = 1e-3,
        rescale: bool = True,
        **arguments: Any,
    ) -> None:
        if isinstance(base, str):
            if base not in BASES:
                raise ValueError(
                    f"base must be one of {', '.join(BASES)} or an optimiser class, got {base!r}."
                    f"{nearest(base, BASES)}"
                )
            base = BASES[base]
        self.rescale = rescale
        self.base = base(params, lr=lr, **arguments)  # type: ignore[call-arg]
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share()

    def _share(self) -> None:
        """Groups and state are the base's own, so that schedulers and checkpoints see one optimiser."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Turn every gradient perpendicular to its weights, then let the base optimiser step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.grad.is_sparse:
                        raise ValueError(f"perp_grad needs dense gradients, got {p.grad.layout}.")
                    p.grad.copy_(perpendicular(p.grad, p, self.rescale))
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "rescale": self.rescale}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()
