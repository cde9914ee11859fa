"""Models and laws that predict a number: `fit`, then `predict`."""

from logitkit.theory.faceted_rasch import FacetedRasch, rating_log_probabilities

__all__ = ["FacetedRasch", "rating_log_probabilities"]
