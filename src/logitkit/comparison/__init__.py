"""Many recipes in, a ranking out."""

from logitkit.comparison.driver import Status, compare
from logitkit.comparison.plan import Plan, make_plan, parse_settings
from logitkit.comparison.result import Comparison, Row
from logitkit.comparison.store import Store

__all__ = ["Comparison", "Plan", "Row", "Status", "Store", "compare", "make_plan", "parse_settings"]
