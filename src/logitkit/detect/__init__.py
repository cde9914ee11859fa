"""Out-of-distribution and outlier detection: `fit(x, y=None)`, then `score(x)`, higher is more abnormal."""

from logitkit.detect.hyp_oc import (
    HypOC,
    clip_norm,
    equal_error_rate,
    half_total_error_rate,
    pairwise_confusion,
)
from logitkit.detect.mahalanobis import Mahalanobis, MahalanobisEnsemble
from logitkit.detect.msp import MSP

__all__ = [
    "MSP",
    "HypOC",
    "Mahalanobis",
    "MahalanobisEnsemble",
    "clip_norm",
    "equal_error_rate",
    "half_total_error_rate",
    "pairwise_confusion",
]
