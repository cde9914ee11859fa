"""137: a language model trains with power attention, and then runs on sums and products only.

Set beforehand: the language model on bytes of Python source (`CODE_LM`), p = 4; seeds 0-2; all thresholds.
Left open, and chosen before the first run:
- The loss is that on the test text, per byte. Power attention has its mean form, whose divisor does not
  depend on the length.
- Intervals of the polynomials come from the validation text, with the margins that are `to_polynomial`'s
  defaults; a test number outside them, which raises, would count as an infinite loss.
- The operations are those that torch dispatches on 64 windows of test text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitkit import data
from logitkit.attention import to_polynomial
from logitkit.claims.base import Check, Trial, claim, over_seeds, ratio
from logitkit.claims.fixtures import CODE_LM, source, text_loss
from logitkit.engine import Prepared, Recipe

FORBIDDEN = ("exp", "div", "sqrt", "reciprocal", "pow", "log", "softmax", "gelu", "erf", "tanh", "norm")


@claim(
    "attention",
    "power",
    statement="A byte language model with power attention is as good as with softmax, and as good again when"
    " its divisions, roots and activations are polynomials.",
    seeds=range(3),
)
def power(trial: Trial) -> list[Check]:
    loss: dict[str, list[float]] = {"power": [], "softmax": [], "polynomial": []}
    operations, depth = [], []
    for seed in trial.seeds:
        prepared = Prepared.of(data.split(source(trial), seed))
        for arm, attention in (("power", "power(power=4, mean_form=True)"), ("softmax", "softmax")):
            recipe = Recipe.of(**CODE_LM, attention=attention, seed=seed, split_seed=seed)
            network = trial.train(prepared, recipe).network
            loss[arm].append(text_loss(network, prepared.test))
            if arm == "power":
                made, pieces = to_polynomial(network, prepared.val[0].split(64))
                loss["polynomial"].append(loss_within(made, prepared.test))
                operations.append(float(len(forbidden(made, prepared.test[0][:64]))))
                depth.append(float(sum(p.depth for p in pieces)))
    change = [abs(p / q - 1) for p, q in zip(loss["polynomial"], loss["power"], strict=True)]
    return [
        ratio("test loss: power over softmax", "<=", 1.05, power=loss["power"], softmax=loss["softmax"]),
        over_seeds("test loss: relative change by polynomials", change, "<=", 0.02,
                   {"change": change, "polynomial": loss["polynomial"], "depth": depth}),
        over_seeds("kinds of operations that are neither sums nor products", operations, "<=", 0,
                   {"operations": operations}),
    ]  # fmt: skip


def loss_within(network: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    """The loss; infinite where a number falls outside the interval of a polynomial."""
    try:
        return text_loss(network, rows)
    except ValueError:
        return math.inf


class Operations(TorchDispatchMode):
    """Names of the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def forbidden(network: nn.Module, x: Tensor) -> set[str]:
    """Operations on the way to the scores that encrypted numbers do not have."""
    with Operations() as seen:
        try:
            network(x)
        except ValueError:
            return {"a number outside its interval"}
    return {name for name in seen.names - {"expand"} if any(bad in name for bad in FORBIDDEN)}
