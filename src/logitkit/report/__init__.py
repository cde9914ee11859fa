"""One HTML file with everything a comparison found, and the ranking as a figure.

Both take what `Comparison.to_dict()` returns, or the same read back from its JSON.
"""

from logitkit.report.figures import ranking_figure
from logitkit.report.page import write_report

__all__ = ["ranking_figure", "write_report"]
