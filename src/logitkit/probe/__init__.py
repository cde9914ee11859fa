"""What a model has learned: mutual information of its layers."""

from logitkit.probe.adaptive_kde import AdaptiveKDE
from logitkit.probe.base import InformationPlane, Known, layer_outputs
from logitkit.probe.ebab import EBAB
from logitkit.probe.information_plane import FixedBins, gradient_snr, ib_curve
from logitkit.probe.lossy_mi import (
    Estimate,
    LossyMI,
    entropy_terms,
    neighbour_weights,
    noise_entropy,
    noisy_activations,
    principal_components,
)

__all__ = [
    "EBAB",
    "AdaptiveKDE",
    "Estimate",
    "FixedBins",
    "InformationPlane",
    "Known",
    "LossyMI",
    "entropy_terms",
    "gradient_snr",
    "ib_curve",
    "layer_outputs",
    "neighbour_weights",
    "noise_entropy",
    "noisy_activations",
    "principal_components",
]
