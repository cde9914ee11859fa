"""Losses on top of a linear layer whose logits never exist all at once."""

from logitkit.ops.linear_loss.cross_entropy import linear_cross_entropy
from logitkit.ops.linear_loss.losses import linear_comp_sum, linear_distillation, linear_ldr, linear_nkd

__all__ = ["linear_comp_sum", "linear_cross_entropy", "linear_distillation", "linear_ldr", "linear_nkd"]
