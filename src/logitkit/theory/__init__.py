"""Models and laws that predict a number: `fit`, then `predict`."""

from logitkit.theory.faceted_rasch import FacetedRasch, rating_log_probabilities
from logitkit.theory.topk_moe import (
    Parameters,
    Rate,
    TopKMoE,
    convergence_slope,
    em_step,
    hellinger,
    rate_experiment,
    topk_log_gate,
    voronoi_cells,
    voronoi_loss,
)

__all__ = [
    "FacetedRasch",
    "Parameters",
    "Rate",
    "TopKMoE",
    "convergence_slope",
    "em_step",
    "hellinger",
    "rate_experiment",
    "rating_log_probabilities",
    "topk_log_gate",
    "voronoi_cells",
    "voronoi_loss",
]
