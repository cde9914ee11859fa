"""Cross-layer binarisation: one family of binary layers after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from logitkit.registry import Choice, part

FAMILIES = ("mlp", "attn")


def families(network: nn.Module) -> dict[str, list[nn.Module]]:
    """The network's layers that have a switch `binary`: those of modules called `attention` or `attn`, and
    all others."""
    found: dict[str, list[nn.Module]] = {"mlp": [], "attn": []}
    for name, module in network.named_modules():
        if isinstance(getattr(module, "binary", None), bool):
            found["attn" if {"attention", "attn"} & set(name.split(".")) else "mlp"].append(module)
    return found


@part(
    "bivit",
    "train",
    title="BiViT: Extremely Compressed Binary Vision Transformer: training",
    paper="arXiv:2211.07091",
    number=49,
    companion_of="bivit",
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
    search_space={"schedule": Choice(("mlp", "attn"), ("attn", "mlp"))},
)
class CrossLayerBinarization:
    """Cross-layer binarisation: a binary transformer trained in two stages, so that the errors of binary
    attention and of binary MLPs do not meet from the start.

    Equation: in the first half of the budget the layers of schedule[0] are binary and those of schedule[1]
    in full precision, with the same weights; in the second half all are binary. The scales of binary weights
    start anew, from the weights as they are, when their layer becomes binary.

    Shapes: an algorithm of the engine, `algorithm=bivit`, for transformers of `layers=binary_linear` and,
    if wanted, `attention=bivit`. In a training loop of your own, call `models.binarize_vit` for one family
    and later for the other.

    Defaults: MLPs first, and half of the budget each, which are choices made here: the authors' code does not
    hold the training. The schedule of the rate runs over both stages.

    Raises: ValueError for another schedule, a network that lacks binary layers of a family, or a patience.

    Source: He et al., ICCV 2023, arXiv:2211.07091, its cross-layer binarisation.

    Not for: few steps from random weights, which are better spent on a model that is binary from the start;
    early stopping, which may end before all is binary.
    """

    def __init__(self, schedule: Sequence[str] = FAMILIES) -> None:
        if sorted(schedule) != sorted(FAMILIES):
            raise ValueError(f"schedule must be 'mlp' and 'attn' in some order, got {tuple(schedule)}.")
        self.schedule, self.stage = tuple(schedule), 0
        self._set = 0

    def check(self, network: nn.Module) -> None:
        """Raise ValueError for a network that it cannot train."""
        counts = {family: len(layers) for family, layers in families(network).items()}
        if not all(counts.values()):
            raise ValueError(
                f"expected binary layers in MLPs and in attention, got {counts}; use layers=binary_linear."
            )

    def step(self, trainer: Any, batch: Any) -> Tensor:
        """One step of the stage that the budget has come to; the recipe's loss, detached."""
        if trainer.recipe.patience is not None:
            raise ValueError(f"both stages are needed, got patience={trainer.recipe.patience}.")
        stage = 1 if trainer.share < 0.5 else 2
        if stage != self._set:
            self._begin(families(trainer.network), stage)
        return trainer.standard_step(batch)

    def state_dict(self) -> dict[str, int]:
        return {"stage": self.stage}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.stage = state["stage"]

    def _begin(self, layers: dict[str, list[Any]], stage: int) -> None:
        """Layers as the stage has them, also after a checkpoint, which does not hold what is binary."""
        for number, family in enumerate(self.schedule, 1):
            for layer in layers[family]:
                layer.binary = number <= stage
                if number == stage != self.stage and hasattr(layer, "reset_scale"):
                    layer.reset_scale()
        self.stage = self._set = stage
