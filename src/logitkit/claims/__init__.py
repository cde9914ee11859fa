"""Claims: what each paper promises, as experiments anyone can re-run."""

from logitkit.claims.base import Check, Evidence, Trial, claim, difference, over_seeds, ratio
from logitkit.claims.verify import all_claims, verify

__all__ = [
    "Check", "Evidence", "Trial", "all_claims", "claim", "difference", "over_seeds", "ratio", "verify",
]  # fmt: skip
