"""Information bottlenecks: objectives that also limit what codes keep of the input."""

from logitkit.bottleneck.cs_ib import CSIB, conditional_cs, cs_qmi, gaussian_gram, median_sigma

__all__ = ["CSIB", "conditional_cs", "cs_qmi", "gaussian_gram", "median_sigma"]
