"""Hebb's rule: the last layer learns by counting which features are active with which class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from logitkit.registry import part


@part(
    "hebbian",
    "train",
    title="Parallel Learning by Multitasking Neural Networks",
    paper="arXiv:2308.04106",
    number=187,
    companion_of="multitasking_hopfield",
    tasks=("classification",),
)
class Hebbian:
    """Hebbian learning of the last layer, the supervised couplings of `theory.MultitaskingHopfield` as a rule
    for a classifier: no gradient, one pass over the rows, and a row changes the weights of its class only.

    Equation: z = (h - m) / sd, the features of the backbone as it was initialised, standardised by their mean
    and standard deviation over the training rows; e_k = mean of sign(z) over the rows of class k seen so far;
    score_k = sum_i e_ki z_i / (N v), N the number of features, v the mean of e^2. A score is the overlap of
    the row with the mean of its class, n_k in units of v; that of +-1 features is the network's own.

    Shapes: an algorithm of the engine, `algorithm=hebbian`, for a linear head with a bias on any model;
    `model=linear` learns from the inputs themselves. Weight decay, rate and optimiser have no effect.

    Defaults: none to choose. More than one epoch changes nothing.

    Raises: ValueError for another head.

    Source: Agliari, Alessandrelli, Barra, Ricci-Tersenghi, arXiv:2308.04106, the couplings of the supervised
    setting; sign and standardisation make spins of real features.

    Not for: accuracy: features do not learn, and their correlations are ignored. Scores are no logits; see
    `calibrate=temperature`.
    """

    def __init__(self) -> None:
        self._state: dict[str, Tensor] = {}

    def check(self, network: nn.Module) -> None:
        """Raise ValueError for a network that it cannot train."""
        head = network.head
        if not isinstance(head, nn.Linear) or head.bias is None or hasattr(head, "loss"):
            raise ValueError(f"Hebb's rule needs a linear head with a bias, got {type(head).__name__}.")

    @torch.no_grad()
    def step(self, trainer: Any, batch: Any) -> Tensor:
        """Count the batch in; the recipe's loss with the weights that this gives."""
        network, head = trainer.network, trainer.network.head
        if not self._state:
            seen = trainer.embeddings()
            self._state = {
                "mean": seen.mean(0), "sd": seen.std(0, correction=0).clamp(min=1e-6),
                "sums": torch.zeros_like(head.weight), "counts": torch.zeros_like(head.bias),
            }  # fmt: skip
        mean, sd, sums, counts = self._state.values()
        network.eval()  # as the features were that the mean is of
        spins = ((network.embed(batch.x) - mean) / sd).sign()
        network.train()
        sums.index_add_(0, batch.y, spins)
        counts.index_add_(0, batch.y, torch.ones_like(batch.y, dtype=counts.dtype))
        e = sums / counts.clamp(min=1)[:, None]
        head.weight.copy_(e / (e.shape[1] * e.square().mean().clamp(min=1e-30) * sd))
        head.bias.copy_(-head.weight @ mean)
        return trainer.objective(network, batch)

    def state_dict(self) -> dict[str, Tensor]:
        return self._state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._state = {key: state[key] for key in ("mean", "sd", "sums", "counts")} if state else {}
