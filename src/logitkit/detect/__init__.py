"""Out-of-distribution and outlier detection: `fit(x, y=None)`, then `score(x)`, higher is more abnormal."""

from logitkit.detect.mahalanobis import Mahalanobis, MahalanobisEnsemble
from logitkit.detect.msp import MSP

__all__ = ["MSP", "Mahalanobis", "MahalanobisEnsemble"]
