"""015: softmax-free attention is as good as softmax on digits.

Set beforehand: the small vision transformer on digits (`TINY_VIT`) for both arms, ratio 2; seeds 0-2; the
threshold.
Left open, and chosen before the first run:
- No normalisation of the kernel, as in the first paper and the default here.
"""

from __future__ import annotations

from logitkit.claims.base import Check, Trial, claim, difference
from logitkit.claims.fixtures import digits_accuracy


@claim(
    "attention",
    "soft",
    statement="In a small vision transformer on digits, softmax-free attention with 16 landmarks for 64"
    " tokens is within 2 points of softmax.",
    seeds=range(3),
)
def soft(trial: Trial) -> list[Check]:
    return [
        difference("test accuracy, points: softmax-free minus softmax", ">=", -2,
                   soft=digits_accuracy(trial, attention="soft(ratio=2)"),
                   softmax=digits_accuracy(trial)),
    ]  # fmt: skip
