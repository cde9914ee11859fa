"""The expected calibration error of the most likely class."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.calibration_error import reference
from logitkit.ops.checks import check_labels, check_logits
from logitkit.ops.dispatch import implementation


@torch.no_grad()
def calibration_error(
    scores: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    *,
    bins: int = 15,
    norm: Literal["l1", "l2", "max"] = "l1",
    from_logits: bool = False,
) -> float:
    """How far confidence is from accuracy, over bins of equal width of the largest probability.

    With n_b rows in bin b, accuracy a_b and mean confidence c_b: sum_b (n_b / n) |a_b - c_b| ("l1", the
    expected calibration error), the square root of sum_b (n_b / n) (a_b - c_b)^2 ("l2"), or max_b |a_b - c_b|
    ("max"). Bin b holds the confidences in ((b-1) / bins, b / bins]; of equal probabilities the first is the
    prediction.

    scores: probabilities, or with `from_logits` the logits, of any floating dtype; sums are
    float64.

    Pays: always on a CPU (one reading of the scores). On a GPU plain torch runs.

    Raises: ValueError for wrong shapes or dtypes, NaN, probabilities above 1, infinite logits, labels out of
    range, fewer than one bin, an unknown norm.

    Source: Guo, Pleiss, Sun, Weinberger, arXiv:1706.04599, equation 3; "max" is their equation 5.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    if norm not in ("l1", "l2", "max"):
        raise ValueError(f"norm must be 'l1', 'l2' or 'max', got {norm!r}.")
    name = "logits" if from_logits else "probabilities"
    x = check_logits(scores.detach(), name, values=False).contiguous()
    y = check_labels(target, x.shape[0], x.shape[1]).contiguous()
    kernel = implementation(reference, x, cpu=True)
    counts, confidence, correct, highest, nan = kernel.bin_sums(x, y, bins, from_logits)
    if nan:
        check_logits(x, name)
    if highest > 1.001 and not from_logits:
        raise ValueError(f"probabilities must lie in [0, 1], got {highest:g}; logits need from_logits=True.")
    if highest == torch.inf:
        raise ValueError("logits must not be infinite, got inf.")
    gap = (correct - confidence).abs() / counts.clamp(min=1)
    share = counts / counts.sum()
    if norm == "max":
        return float(gap.max())
    return float((share * gap).sum()) if norm == "l1" else float((share * gap.square()).sum().sqrt())
