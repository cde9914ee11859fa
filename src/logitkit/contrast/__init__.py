"""Objectives on embeddings, and on the scores of many labels."""

from logitkit.contrast.base import RankingLoss
from logitkit.contrast.decoupled_softmax import DecoupledSoftmax, decoupled_softmax
from logitkit.contrast.multi_positive import MultiPositive
from logitkit.contrast.soft_topk import SoftTopK

__all__ = ["DecoupledSoftmax", "MultiPositive", "RankingLoss", "SoftTopK", "decoupled_softmax"]
