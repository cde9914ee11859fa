"""Fast gradient sign method: one step of the size of the ball."""

from __future__ import annotations

from logitkit.registry import part
from logitkit.robust.pgd import PGD


@part(
    "fgsm",
    "robust",
    title="Fast gradient sign method",
    no_compile="it differentiates the model inside the call",
)
class FGSM(PGD):
    """FGSM: the cheapest attack, for a first look at a model's robustness.

    Equation: x_adv = x + eps sign(g), g the gradient of the cross-entropy of model(x) and y at x.

    Shapes: x (batch, ...) floats, y (batch,) integer labels, model(x) (batch, classes) logits; returns
    x_adv of x's shape and dtype, without gradient. eps is in the units of x.

    Defaults: eps = 8/255 as `pgd`, to compare with it; `clamp=(0, 1)` keeps pixels valid.

    Raises: ValueError as `pgd`.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572,
    section 4.

    Not for: measuring robust accuracy, which it overstates (see `pgd`), or training alone, after which models
    learn to defeat just this step.
    """

    def __init__(self, eps: float = 8 / 255, clamp: tuple[float, float] | None = None) -> None:
        super().__init__(eps, steps=1, step_size=eps, random_start=False, clamp=clamp)
