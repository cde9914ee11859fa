"""Projected gradient descent: the attack to survive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_batch, check_positive, draw_normal, draw_uniform
from logitkit.registry import part

Model = Callable[[Tensor], Tensor]


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """`model` in evaluation mode, and each of its modules back in its own mode afterwards."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@part(
    "pgd",
    "robust",
    title="Projected gradient descent attack",
    no_compile="it differentiates the model inside the call",
)
class PGD:
    """PGD: the standard first-order attack, for adversarial training and to measure robust accuracy.

    Equation: x_0 = x + a random point of the ball; x_{t+1} = P(x_t + step_size d(g)), with g the gradient of
    the cross-entropy of model(x_t) and y, d(g) = sign(g) for "linf" and g / ||g||_2 for "l2", and P the
    projection onto ||x' - x|| <= eps, then onto `clamp`.

    Shapes: x (batch, ...) floats, y (batch,) integer labels, model(x) (batch, classes) logits; returns
    x_adv of x's shape and dtype, without gradient. eps and step_size are in the units of x.

    Defaults: eps = 8/255, 7 steps of 2/255 from a random start in the "linf" ball, the paper's for CIFAR-10
    with pixels in [0, 1] (pass `clamp=(0, 1)` if yours are); `step_size=None` is eps / 4. The model is in
    evaluation mode during the attack and back in its own after; no parameter's `.grad` changes. Starts come
    from `generator`, on its device, else from torch's global CPU generator.

    Raises: ValueError for eps, steps or step_size that are not positive, an unknown norm, clamp limits out of
    order, x that is not floating point or has no feature dimension, an empty batch, labels of another
    length, dtype or out of range, NaN logits.

    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial
    Attacks", arXiv:1706.06083, section 2.1.

    Not for: certifying robustness, as surviving it proves nothing about stronger attacks; models whose
    gradients vanish or are random.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 7,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
        clamp: tuple[float, float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.step_size = eps / 4 if step_size is None else step_size
        check_positive(eps=eps, steps=steps, step_size=self.step_size)
        if norm not in ("linf", "l2"):
            raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
        if clamp is not None and not clamp[0] < clamp[1]:
            raise ValueError(f"clamp must be (low, high) with low < high, got {clamp}.")
        self.eps = eps
        self.steps = steps
        self.norm = norm
        self.random_start = random_start
        self.clamp = clamp
        self.generator = generator

    def __call__(
        self, model: Model, x: Float[Tensor, " batch *shape"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch *shape"]:
        def cross_entropy(x_adv: Tensor) -> Tensor:
            logits, target = check_batch(model(x_adv), y)
            return F.cross_entropy(logits, target, reduction="sum")

        with evaluating(model):
            return self.ascend(cross_entropy, x)

    def ascend(
        self, objective: Callable[[Tensor], Tensor], x: Float[Tensor, " batch *shape"]
    ) -> Float[Tensor, " batch *shape"]:
        """x' in the ball around x at which `objective`, a sum over the batch, is large."""
        if x.ndim < 2 or x.shape[0] == 0 or not x.is_floating_point():
            raise ValueError(
                "x must be floating point of shape (batch, ...) with at least one row, got "
                f"{x.dtype} of shape {tuple(x.shape)}."
            )
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()
            x_adv = self._project(x + self._start(x), x) if self.random_start else x
            for _ in range(self.steps):
                x_adv = x_adv.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(objective(x_adv), x_adv)
                step = gradient.sign() if self.norm == "linf" else gradient / norm_of(gradient)
                x_adv = self._project(x_adv.detach() + self.step_size * step, x)
        return x_adv

    def _start(self, x: Tensor) -> Tensor:
        """A uniform point of the ball."""
        if self.norm == "linf":
            return self.eps * (2 * draw_uniform(x.shape, x, self.generator) - 1)
        direction = draw_normal(x.shape, x, self.generator)
        radius = draw_uniform((len(x), *[1] * (x.ndim - 1)), x, self.generator) ** (1 / x[0].numel())
        return self.eps * radius * direction / norm_of(direction)

    def _project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        delta = x_adv - x
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        else:
            delta = delta * (self.eps / norm_of(delta)).clamp(max=1.0)
        return x + delta if self.clamp is None else (x + delta).clamp(*self.clamp)


def norm_of(x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *ones"]:
    """The l2 norm of each row, positive, shaped to divide x."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return norm.view(-1, *[1] * (x.ndim - 1))
